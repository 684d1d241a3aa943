"""Linux's own drivers on passed-through devices: NICs, NVMe, a display; in Linux guests, on Debian's kernel as host."""
import base64
import json
import re

from machine import Case, timeout
from passthrough_test import HOST
from picture import STILL, read_png

# job NAME <<END: what the guest NAME is to run, in an initrd of its own.
# vm NAME IMAGE WORDS ARGUMENT...: the guest, with these words on its kernel command line. One that hangs is stopped while there is
# time left to say what it wrote.
# await NAME TEXT: until the guest NAME has written a line that begins so.
# `set +m`: no job control, or the lab would tell of each that ends.
GUESTS = """
job() {
  mkdir $1 && cat >$1/job && (cd $1 && echo job | cpio -o -H newc >../$1.extra 2>/dev/null)
  cat $LAB_INITRD $1.extra >$1.initrd
}
vm() {
  name=$1 image=$2 words=$3; shift 3
  timeout 75 crossbar run --kernel $image --initrd $name.initrd --memory 256M --report $name.report \\
    --cmdline "console=ttyS0 quiet $words lab_run=\\"sh /job\\"" "$@" >$name.console 2>$name.err
  echo "status $?" >>$name.console
}
await() { until grep -q "^$2" $1.console 2>/dev/null; do kill -0 $3 2>/dev/null || break; sleep 0.1; done; }
show() { for name; do echo "== $name"; tr -d '\\r' <$name.console; cat $name.err; done; }
faults() { wc -l <$LAB_FAULTS; }
"""

# In a guest: its only NIC, the disk behind a slot, and how much of either's interrupts came which way.
INSIDE = """
nic() { for n in /sys/class/net/*; do [ ! -e $n/device ] || echo ${n##*/}; done; }
disk() {
  until [ -b /dev/$(basename /sys/bus/pci/devices/0000:00:$1.0/nvme/nvme*)n1 ]; do sleep 0.1; done
  echo /dev/$(basename /sys/bus/pci/devices/0000:00:$1.0/nvme/nvme*)n1
}
up() { ifconfig $(nic) 192.0.2.$1 netmask 255.255.255.0 up; }
receive() { echo "received $(nc -l -p 5000 | sha256sum)"; }
send() {
  until ping -c 1 -W 1 192.0.2.$1 >/dev/null; do sleep 0.1; done
  ping -c 3 -i 0.2 192.0.2.$1 | grep received
  head -c 4000000 /dev/urandom >/tmp/bulk
  echo "sent $(sha256sum </tmp/bulk)"
  # Nobody listens yet, which is told at once; and only once, so the time-out must be one that no transfer takes.
  until nc -w 150 192.0.2.$1 5000 </tmp/bulk; do sleep 0.1; done
}
interrupts() { awk -v name="$1" '$0 ~ name { for (i = 2; $i ~ /^[0-9]+$/; ++i) n += $i; kinds = kinds " " $i }
                                 END { print "interrupts " n kinds }' /proc/interrupts; }
"""

BULK = re.compile(r"^(?:sent|received) ([0-9a-f]{64})", re.MULTILINE)


def job(name, script):
    return f"job {name} <<'END'\n{INSIDE}{script}\npoweroff -f\nEND\n"


def devices(*specs, port="port=root,"):
    return [word for spec in specs for word in ("--device", f"{spec},{port}bind=vfio")]


class Drivers(Case):
    def consoles(self, outcome):
        """The parts of the output that `== NAME` heads: what guests wrote, each of which has powered itself off."""
        found = dict(part.split("\n", 1) for part in outcome.out.split("== ")[1:])
        self.assertEqual(outcome.out.count("guest: Linux"), outcome.out.count("\nstatus 0\n"), outcome)
        return found

    def assert_bulk_arrived(self, outcome):
        sums = BULK.findall(outcome.out)
        self.assertEqual((len(sums), len(set(sums))), (2, 1), outcome)
        self.assertIn("3 packets received", outcome.out, outcome)

    # Of a screen of 1280 by 800: the first rows are pixels of two kinds in turn, the others of one.
    PAINT = """
    echo 0 >/sys/class/graphics/fb0/blank
    { yes ABCDEFG | head -c $((1280 * 4 * 300)); yes xyz | head -c $((1280 * 4 * 500)); } >/dev/fb0
    echo painted; read -r _
    """

    def assert_painted(self, png):
        width, height, rows = read_png(base64.b64decode(png))
        self.assertEqual((width, height), (1280, 800))
        self.assertEqual(set(rows[:300]), {b"CBAGFE" * 640})  # red comes first here, and blue in the frame buffer
        self.assertEqual(set(rows[300:]), {b"zyx" * 1280})

    PEER_READ = """
    disk=$(disk 08)
    head -c 1048576 /dev/urandom >/tmp/in; dd if=/tmp/in of=$disk bs=1M conv=fsync 2>/dev/null
    echo "p2p $(sha256sum </tmp/in) $(lab-p2p $disk 0000:00:09.0 1048576 | sha256sum)"
    """
    PEERS = "--device $LAB_DEVICE3,slot=08 --device $LAB_DEVICE4,slot=09"

    def assert_peer_read(self, text, right):
        wrote, read = re.search(r"^p2p ([0-9a-f]{64})  - ([0-9a-f]{64})", text, re.MULTILINE).groups()
        self.assertEqual(wrote == read, right, text)

    @timeout(500)
    def test_nics_display_and_p2p_between_disks(self):
        """Two guests: e1000e to igb, and in the first a display and two NVMe disks; a third is the negative control."""
        one = job("one", "up 2\n" + self.PAINT + self.PEER_READ + "receive\ninterrupts $(nic)")
        two = job("two", "up 3\nsend 2\ninterrupts $(nic)")
        control = job("control", self.PEER_READ)
        outcome = self.in_lab(STILL + GUESTS + one + two + control + f"""
            mkfifo in
            vm one $LAB_LINUX '' --device $LAB_DEVICE1 --device $LAB_DEVICE5 {self.PEERS} <in & one=$!
            exec 3>in
            vm two $LAB_LINUX '' --device $LAB_DEVICE2 & two=$!
            await one painted $one; still bochs5 screen.png; echo >&3
            wait $one $two; before=$(faults)
            vm control $LAB_LINUX '' {self.PEERS},p2p=off
            show one two control
            echo "== picture"; base64 -w 0 screen.png; echo
            echo "== faults"; echo $before; faults
            """, *devices("e1000e,net=a", "igb,net=a", "nvme", "nvme,cmb=64M", "bochs"), "--guest", "iommufd",
            "--timeout", 280, kernel=HOST)
        consoles = self.consoles(outcome)
        self.assert_bulk_arrived(outcome)
        self.assert_peer_read(consoles["one"], True)
        self.assert_painted(consoles["picture"].strip())
        for name in ("one", "two"):
            self.assertRegex(consoles[name], r"(?m)^interrupts [1-9]\d\d+ .*MSI", outcome)
        # The same without P2P: the IOMMU refuses what arrived before.
        self.assert_peer_read(consoles["control"], False)
        before, after = map(int, consoles["faults"].split())
        self.assertEqual(before, 0, outcome)
        self.assertGreater(after, 0, outcome)

    KEEP = """
    disk=$(disk 08); mkdir /tmp/files
    if mount $disk /tmp/files 2>/dev/null; then
      echo "read $(cat /tmp/files/one /tmp/files/two | sha256sum)"
    else
      mke2fs $disk >/dev/null; mount $disk /tmp/files
      head -c 30000000 /dev/urandom >/tmp/files/one; head -c 100001 /dev/urandom >/tmp/files/two
      echo "wrote $(cat /tmp/files/one /tmp/files/two | sha256sum)"
      umount /tmp/files; reboot -f
    fi
    """

    @timeout(300)
    def test_a_file_system_outlives_a_reboot(self):
        self.need_full()
        outcome = self.in_lab(GUESTS + job("one", self.KEEP) + """
            vm one $LAB_VMLINUX '' --device $LAB_DEVICE1,slot=08; show one; cat $LAB_FAULTS
            echo "== report"; cat one.report""",
            *devices("nvme,disk=128M"), "--guest", "debian-6.12-cloud", "--timeout", 280, kernel=HOST)
        console, report = outcome.out.removeprefix("== one\n").split("== report\n")
        kept = re.findall(r"^(guest|wrote|read|status)[: ]+(\S+)", console, re.MULTILINE)
        self.assertEqual([word for word, _ in kept], ["guest", "wrote", "guest", "read", "status"], outcome)
        self.assertEqual(kept[1][1], kept[3][1], outcome)
        self.assertEqual((kept[4][1], json.loads(report)["end"]["reboots"]), ("0", 1), outcome)

    @timeout(300)
    def test_nics_with_legacy_interrupts(self):
        self.need_full()
        outcome = self.in_lab(GUESTS + job("one", "up 2\nreceive\ninterrupts $(nic)")
                              + job("two", "up 3\nsend 2\ninterrupts $(nic)") + """
            vm one $LAB_LINUX pci=nomsi --device $LAB_DEVICE1 & one=$!
            vm two $LAB_LINUX pci=nomsi --device $LAB_DEVICE2 & two=$!
            wait $one $two; show one two""", *devices("e1000e,net=a", "igb,net=a"), "--guest", "iommufd",
            "--timeout", 280, kernel=HOST)
        consoles = self.consoles(outcome)
        self.assert_bulk_arrived(outcome)
        for name in ("one", "two"):
            self.assertRegex(consoles[name], r"(?m)^interrupts [1-9]\d\d+ .*IO-APIC", outcome)

    @timeout(200)
    def test_a_virtual_function_and_the_lab_host(self):
        self.need_full()
        outcome = self.in_lab(GUESTS + job("one", "up 2\nsend 1\ninterrupts $(nic)") + """
            pf=$(basename $(readlink /sys/bus/pci/devices/$LAB_DEVICE1/physfn))
            ifconfig $(ls /sys/bus/pci/devices/$pf/net) up
            mkfifo never; nc -l -p 5000 <>never | sha256sum >sum &  # it would hang up at the end of its stdin
            vm one $LAB_LINUX '' --device $LAB_DEVICE1
            wait; show one; echo "received $(cat sum)"; cat $LAB_FAULTS""",
            *devices("igb,vfs=1,net=host"), "--guest", "iommufd", "--timeout", 180, kernel=HOST)
        self.consoles(outcome)
        self.assert_bulk_arrived(outcome)

    ALL = """
    at() { echo /sys/bus/pci/devices/0000:00:$1.0; }
    for slot in 08 0a; do
      disk=$(disk $slot); head -c 1000000 /dev/urandom | tee /tmp/$slot | dd of=$disk bs=1M iflag=fullblock conv=fsync 2>/dev/null
      echo 3 >/proc/sys/vm/drop_caches
      head -c 1000000 $disk | cmp - /tmp/$slot && echo "disk $slot keeps what it got"
    done
    # Nobody answers, but the other NIC of the net hears the question.
    from=$(ls $(at 09)/net) to=$(ls $(at 0c)/net); ifconfig $from 192.0.2.2; ifconfig $to up
    until ping -c 1 -W 1 192.0.2.9 >/dev/null; [ $(cat /sys/class/net/$to/statistics/rx_packets) != 0 ]; do :; done
    echo "between NICs: ok"
    ls $(at 0b)/net $(at 0d)/resource2
    """

    @timeout(200)
    def test_functions_groups_and_a_switch_in_one_guest(self):
        """Two functions of one device share a group; two devices behind a switch do not, though it has no ACS."""
        self.need_full()
        slots = " ".join(f"--device $LAB_DEVICE{number},slot={slot:02x}" for number, slot in enumerate(range(8, 14), 1))
        outcome = self.in_lab(GUESTS + job("one", self.ALL) + f"""
            for device in $LAB_DEVICES; do basename $(readlink /sys/bus/pci/devices/$device/iommu_group); done | tr '\\n' ' '
            vm one $LAB_LINUX '' {slots}
            show one; cat $LAB_FAULTS; echo "== devices"; cat one.report
            """, *devices("nvme"), *devices("e1000e,net=a", port="port=same,"), *devices("nvme", "e1000e", port="port=switch,"),
            *devices("igb,net=a", port=""), *devices("ivshmem"), "--guest", "iommufd", "--timeout", 180, kernel=HOST)
        groups = outcome.out.split("==")[0].split()
        self.assertEqual((groups[0], len(set(groups))), (groups[1], 5), outcome)
        consoles = self.consoles(outcome)
        for text in ("disk 08 keeps what it got", "disk 0a keeps what it got", "between NICs: ok"):
            self.assertIn(text, consoles["one"], outcome)
        report = json.loads(consoles["devices"])["passthrough"]
        self.assertEqual([device["lost"] for device in report["devices"]], [False] * 6)
