"""What passthrough refuses, each staged for real: one line that names the cause and the next step, and nothing is left."""
import json
import re
import shlex

from machine import Case
from passthrough_test import HOST, behind

SUCCESS, USAGE, HOST_ERROR, STOPPED = 1, 2, 4, 8

# `check NAME SHELL` shows what SHELL says, its last line "status N", and which groups are still open after it.
PREPARE = """
run() { guest=$1; shift; crossbar run --kernel $LAB_GUESTS/$guest.elf --memory 128M "$@" 2>&1; echo "status $?"; }
group() { echo /dev/vfio/$(basename $(readlink /sys/bus/pci/devices/$1/iommu_group)); }
held() { for file in /dev/vfio/[0-9]*; do [ ! -e $file ] || (: 8<>$file) 2>/dev/null || echo "held $file"; done; }
check() { echo "== $1"; touch last; mv last before; eval "$2" >last; cat last; held; }
kernel_says() { dmesg | grep -E 'WARNING|BUG|Oops|Call Trace'; }

# The command that the message before gave, as it stands there.
bind_it() { sed -n 's/^crossbar: .*; bind [a-z]*: //p' before >command; sh command; }

# A user without privileges, who may use KVM.
chmod 666 /dev/kvm
mkdir -p /etc
echo 'user:x:1000:1000::/tmp:/bin/sh' >/etc/passwd
as_user() {
  (ulimit -l $1; shift
   su user -s /bin/sh -c "crossbar run --kernel $LAB_GUESTS/hello.elf --memory 128M $* 2>&1; echo status \\$?")
}
echo $LAB_DEVICES
"""


class Refused(Case):
    def check(self, cases, *arguments):
        """Each case: its name, shell, status, and what the one line says, where {1} is the first device's address."""
        script = PREPARE + "".join(f"check {shlex.quote(name)} {shlex.quote(shell)}\n" for name, shell, *_ in cases)
        outcome = self.in_lab(script + "echo '== kernel'; kernel_says; true", *arguments, kernel=HOST)
        addresses, *runs = re.split(r"(?m)^== .*\n", outcome.out)
        self.assertEqual(runs.pop(), "", outcome)
        for (name, _, status, *words), text in zip(cases, runs, strict=True):
            with self.subTest(name):
                lines = text.splitlines()
                said = [line for line in lines if line.startswith("crossbar: ")]
                self.assertEqual((lines[-1:], len(said)), ([f"status {status}"], int(status != SUCCESS)), text)
                for word in words:
                    self.assertIn(word.format(None, *addresses.split()), said[0])

    def test_in_one_line_that_says_what_to_do(self):
        self.check((
            ("not there", "run hello --device 0000:3f:1f.7", HOST_ERROR, "no PCI device 0000:3f:1f.7", "lspci -D"),
            ("a bridge", "run hello --device $(basename $(dirname $(readlink -f /sys/bus/pci/devices/$LAB_DEVICE1)))",
             HOST_ERROR, "is a bridge", "a device behind it"),
            ("no driver", "run hello --device $LAB_DEVICE1", HOST_ERROR, "{1} is bound to no driver, not to vfio-pci"),
            ("no driver, repaired", "bind_it; run hello --device $LAB_DEVICE1", SUCCESS),
            ("another driver", "run hello --device $LAB_DEVICE2", HOST_ERROR, "{2} is bound to nvme, not to vfio-pci"),
            ("another driver, repaired", "bind_it; run hello --device $LAB_DEVICE2", SUCCESS),
            ("not viable", "run hello --device $LAB_DEVICE5", HOST_ERROR, "--device {5}: IOMMU group",
             "{6} is bound to bochs-drm, {7} is bound to bochs-drm;"),
            ("not viable, repaired", "bind_it; run hello --device $LAB_DEVICE5 --device $LAB_DEVICE6", SUCCESS),
            ("twice", "run hello --device $LAB_DEVICE3 --device $LAB_DEVICE3,id=b", USAGE, "{3} is given twice"),
            ("twice, by path", "run hello --device $LAB_DEVICE3 --device path=/sys/bus/pci/devices/$LAB_DEVICE3,id=b", USAGE,
             "{3} is given twice"),
            ("one slot", "run hello --device $LAB_DEVICE3,slot=3 --device $LAB_DEVICE4,slot=3", USAGE, "the slot 3"),
            ("a word", "run hello --device $LAB_DEVICE3,speed=9", USAGE, "there is no speed="),
            ("no ROM file", "run hello --device $LAB_DEVICE3,rom=/no/rom", HOST_ERROR, "--device {3}: ", "/no/rom"),
            ("no permission", "as_user unlimited --device $LAB_DEVICE3", HOST_ERROR, "Permission denied",
             "chown USER /dev/vfio/"),
            ("memlock", "chown user $(group $LAB_DEVICE3); as_user 131068 --device $LAB_DEVICE3", HOST_ERROR,
             "cannot map guest RAM", "131072 KiB", "is 131068: ulimit -l 131072"),
            ("memlock, repaired", "as_user 131072 --device $LAB_DEVICE3", SUCCESS),
            ("no type 1", "rmmod vfio_iommu_type1; run hello --device $LAB_DEVICE3", HOST_ERROR, "modprobe vfio_iommu_type1"),
            ("no type 1, repaired", "modprobe vfio_iommu_type1; run hello --device $LAB_DEVICE3", SUCCESS),
            ("no vfio-pci", "rmmod vfio_pci; run hello --device $LAB_DEVICE3", HOST_ERROR, "modprobe vfio-pci"),
            ("no vfio-pci, repaired", "bind_it; run hello --device $LAB_DEVICE3", SUCCESS),
        ), "--device", "edu,port=root", "--device", "nvme,port=root", *behind("edu", "ivshmem"),
            "--device", "edu,bind=vfio,port=bridge", "--device", "bochs,port=bridge", "--device", "bochs,port=bridge")

    def test_no_iommu(self):
        self.check((("no IOMMU", "run hello --device $LAB_DEVICE1", HOST_ERROR, "behind no IOMMU", "intel_iommu=on"),),
                   "--iommu", "none", "--device", "edu")


class Lost(Case):
    """Devices leave while a guest runs. The guest lives, and the host has them back at once."""

    SCRIPT = PREPARE + """
    mkfifo in
    run echo --report report.json --device $LAB_DEVICE1,id=wanted --device $LAB_DEVICE2,id=pulled --device $LAB_DEVICE3,id=kept \
        >out <in &
    exec 3>in
    await() { tries=0; until eval "$1"; do sleep 0.05; tries=$((tries + 1)); [ $tries -lt 400 ] || { echo "no: $1"; cat out; exit 1; }; done; }
    alive() { echo "alive $1" >&3; await "grep -q 'you said: alive $1' out"; }
    await "grep -q '> ' out"
    alive 0
    echo '== in use'; run hello --device $LAB_DEVICE3
    echo '== wanted'
    began=$(date +%s)
    echo $LAB_DEVICE1 >/sys/bus/pci/drivers/vfio-pci/unbind
    [ $(($(date +%s) - began)) -lt 5 ] || echo late
    echo >/sys/bus/pci/devices/$LAB_DEVICE1/driver_override
    echo $LAB_DEVICE1 >/sys/bus/pci/drivers_probe
    basename $(readlink /sys/bus/pci/devices/$LAB_DEVICE1/driver)
    alive 1
    echo '== pulled'
    monitor device_del ivshmem2
    await "[ ! -e /sys/bus/pci/devices/$LAB_DEVICE2 ]"
    alive 2
    killall -TERM crossbar
    wait
    cat out
    held
    echo '== report'; cat report.json
    echo '== kernel'; kernel_says; true
    """

    def test_while_the_guest_runs(self):
        outcome = self.in_lab(self.SCRIPT, *behind("nvme", "ivshmem", "edu"), kernel=HOST)
        _, in_use, wanted, pulled, report, kernel = re.split(r"(?m)^== .*\n", outcome.out)
        self.assertRegex(in_use, r"\Acrossbar: .*is in use by another process; fuser -v /dev/vfio/\d+ names it\nstatus 4\n\Z")
        self.assertEqual(wanted, "nvme\n")
        self.assertRegex(pulled, r"wanted: wanted-back; the guest has lost it")
        self.assertRegex(pulled, r"pulled: wanted-back; the guest has lost it")
        self.assertTrue(pulled.endswith(f"status {STOPPED}\n"), outcome)
        passthrough = json.loads(report)["passthrough"]
        self.assertEqual([(device["id"], device["lost"]) for device in passthrough["devices"]],
                         [("wanted", True), ("pulled", True), ("kept", False)])
        self.assertEqual(passthrough["zaps"]["counts"]["wanted-back"], 2)
        self.assertEqual(kernel, "", outcome)
