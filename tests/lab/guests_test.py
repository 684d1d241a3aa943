"""Linux guests under Crossbar, nested in a lab machine with the real kvm_amd: stock Debian's kernels and the lab's own."""
import os
import re
import shutil
import unittest

from machine import KERNEL, Case, timeout

KERNELS = ("debian-6.1", "debian-6.1-cloud", "debian-6.12", "debian-6.12-cloud", "debian-7", "debian-7-cloud", "iommufd")

# boot FILE ARGUMENT...: what the guest wrote on its console, and Crossbar's status: a pipe's is that of what fails in it. A
# guest that hangs, as one does now and then (docs/decisions/010), is stopped after $PATIENCE seconds.
BOOT = """
set -o pipefail
boot() {
  image=$1; shift
  timeout ${PATIENCE:-100} crossbar run --kernel $image --initrd $LAB_INITRD "$@" </dev/null | tr -d '\\r'
}
guest() { boot $1 --cpus $2 --memory $3 --cmdline 'console=ttyS0 quiet lab_run="poweroff -f"' | grep '^guest:'; }
"""

# A guest whose serial port this script has: `await TEXT N` waits until it has written TEXT N times, `type` is the keyboard.
# `prompt` waits for the shell to read: it asks the terminal where the cursor is then, and what comes earlier may be lost.
TALK = """
mkfifo keys
prompt() { await '\\[6n' 1; }
talk() { : >console; crossbar run --initrd $LAB_INITRD --memory 256M "$@" <keys >console & crossbar=$!; exec 5>keys; }
type() { echo "$*" >&5; }
await() {
  tries=0
  until [ $(grep -c "$1" console) -ge $2 ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { echo "no $1 in:"; cat console; exit 1; }
    sleep 0.1
  done
}
end() { wait $crossbar; echo "status $?"; }
"""

QEMU_FILES = ("bios-256k.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin")
# `machine` is for a subshell: it becomes QEMU, within $LIMIT.
QEMU = """
machine() {
  exec $LIMIT ./qemu-system-x86_64 -L data -accel kvm -machine q35 -cpu host -m 256 -nodefaults -display none -serial stdio \
    -monitor none -no-reboot "$@"
}
qemu() {
  image=$1; shift
  (LIMIT="timeout ${PATIENCE:-100}"; machine -kernel $image -initrd $LAB_INITRD "$@") </dev/null | tr -d '\\r'
}
"""


def qemu_inside():
    """Arguments for lab/run that bring the installed QEMU, with what it needs to boot Linux or a PVH image."""
    program = shutil.which("qemu-system-x86_64")
    if not program:
        kind = AssertionError if os.environ.get("CROSSBAR_REQUIRE_QEMU") else unittest.SkipTest
        raise kind("no QEMU is installed to compare with")
    arguments = ["--file", program]
    for name in QEMU_FILES:
        path = next(path for path in (f"/usr/share/{folder}/{name}" for folder in ("seabios", "qemu")) if os.path.exists(path))
        arguments += ["--file", f"{path}:data/{name}"]
    return arguments


class Boots(Case):
    """By bzImage and by PVH, on 1 and 4 CPUs, with little RAM and with RAM above 4 GiB."""

    @timeout(600, processors=2)
    def test_every_kernel(self):
        """In one lab machine, each kernel one way; the one that is quickest both."""
        ways = [("vmlinuz", 1, 256), ("vmlinux", 4, 3584)]
        self.boots([(kernel, *ways[number % 2]) for number, kernel in enumerate(KERNELS)] + [(KERNELS[-1], *ways[1])])

    def boots(self, cases):
        script = BOOT + "".join(f"guest /lab/linux/{kernel}/{image} {cpus} {memory}M || echo status $?\n"
                                for kernel, image, cpus, memory in cases)
        guests = [word for kernel in dict.fromkeys(case[0] for case in cases) for word in ("--guest", kernel)]
        outcome = self.in_lab(script, *guests, "--memory", "5G", "--timeout", 550)
        # One more for each guest that does not power off: Crossbar's status, or grep's.
        self.assertEqual(len(outcome.out.splitlines()), len(cases), outcome)
        for case, line in zip(cases, outcome.out.splitlines(), strict=True):
            kernel, _, cpus, memory = case
            found = re.fullmatch(r"guest: Linux (\S+), (\d+) CPUs, (\d+) kB", line)
            self.assertTrue(found, f"{case}: {line!r}\n{outcome}")
            series = kernel.split("-")[1] if "-" in kernel else "7"
            self.assertTrue(found.group(1).startswith(series + "."), line)
            self.assertEqual(int(found.group(2)), cpus, line)
            # What Linux keeps for itself is more of a small machine.
            self.assertGreater(int(found.group(3)), memory * 1024 * (0.75 if memory < 1024 else 0.93), line)
            self.assertLessEqual(int(found.group(3)), memory * 1024, line)


def add_kernels():
    for kernel in KERNELS:
        # Apart, because guests of one CPU leave a lab machine's second idle.
        for cpus, processors in ((1, 1), (4, 2)):
            def test(self, kernel=kernel, cpus=cpus):
                self.need_full()
                self.boots([(kernel, image, cpus, memory) for image in ("vmlinuz", "vmlinux") for memory in (256, 3584)])
            name = f"test_{kernel}_on_{cpus}_cpus".replace("-", "_").replace(".", "_").replace("_1_cpus", "_1_cpu")
            setattr(Boots, name, timeout(600, processors=processors)(test))


add_kernels()


class Guest(Case):
    def test_timers_wake_an_idle_guest(self):
        """Each lab host has to give its guests timers that work; built-in KVM once did not."""
        outcome = self.in_lab(BOOT + """boot $LAB_LINUX --memory 256M --cmdline \
            'console=ttyS0 quiet lab_run="sleep 1; sleep 1; echo woken; poweroff -f"' | grep woken""")
        self.assertEqual(outcome.out, "woken\n", outcome)

    def test_shell_prompt(self):
        outcome = self.in_lab(TALK + """
            talk --kernel $LAB_LINUX --cmdline 'console=ttyS0 quiet'
            prompt; type 'echo $((6 * 7))'; await '^42' 1
            type poweroff -f; end""")
        self.assertEqual(outcome.out, "status 0\n", outcome)

    def test_panic_reboots_where_the_guest_asks_for_it(self):
        outcome = self.in_lab(TALK + """
            talk --kernel $LAB_VMLINUX --cmdline 'console=ttyS0 quiet panic=-1'
            prompt; type 'echo c >/proc/sysrq-trigger'
            await '^guest: Linux' 2; type poweroff -f; end""")
        self.assertEqual(outcome.out, "status 0\n", outcome)

    def test_triple_fault_is_a_crash(self):
        outcome = self.in_lab("""timeout 75 crossbar run --kernel $LAB_LINUX --initrd $LAB_INITRD --memory 256M \\
              </dev/null >/dev/null --cmdline 'console=ttyS0 quiet reboot=t,force lab_run="reboot -f; sleep 100"'; echo $?""")
        self.assertEqual(outcome.out, "6\n", outcome)
        self.assertIn("triple fault", outcome.err)


class Reboots(Case):
    """Linux resets by the FADT's register where it is built without EFI, and by the reset vector where with it."""

    @timeout(900, processors=2)
    def test_without_efi_and_with(self):
        self.reboots([("iommufd", 2), ("debian-6.12-cloud", 2)])

    def reboots(self, cases, host=KERNEL):
        script = TALK + "".join(f"""
            talk --kernel /lab/linux/{kernel}/vmlinux --cpus {cpus} --cmdline 'console=ttyS0 quiet' --report report
            prompt; type reboot -f
            await '^guest: Linux' 2; type poweroff -f; end
            grep reboots report""" for kernel, cpus in cases)
        guests = [word for kernel in dict.fromkeys(kernel for kernel, _ in cases) for word in ("--guest", kernel)]
        outcome = self.in_lab(script, *guests, "--memory", "3G", "--timeout", 850, kernel=host)
        self.assertEqual(outcome.out.split(), ["status", "0", '"reboots":', "1"] * len(cases), outcome)


def add_reboots():
    for host in ("debian-6.12", "debian-7"):
        def test(self, host=host):
            self.need_full()
            self.reboots([(kernel, cpus) for kernel in ("debian-6.1", "debian-6.12", "debian-7") for cpus in (1, 4)], host)
        setattr(Reboots, "test_every_series_on_" + host.replace("-", "_").replace(".", "_"), timeout(900, processors=2)(test))


add_reboots()


class Complaints(Case):
    """A guest's kernel warns of nothing that it does not warn of under QEMU."""

    def complaints(self, kernel, file="vmlinuz", cpus=1, memory=256):
        command_line = """'console=ttyS0 loglevel=0 lab_run="echo; dmesg -r | grep ^.[0-4]..; poweroff -f"'"""
        image = f"/lab/linux/{kernel}/{file}"
        outcome = self.in_lab(
            BOOT + QEMU + f"boot {image} --memory {memory}M --cpus {cpus} --cmdline {command_line} >/lab/share/ours\n"
            "[ $? = 0 ] || { cat /lab/share/ours; exit 1; }\n"
            f"qemu {image} -m {memory} -smp {cpus} -append {command_line} >/lab/share/theirs\n"
            "cat /lab/share/ours; echo =; cat /lab/share/theirs", "--guest", kernel, "--memory", f"{memory + 2560}M",
            "--timeout", 550 if cpus == 1 else 850, *qemu_inside())
        ours, theirs = outcome.out.split("=\n", 1)
        self.assertIn("guest: Linux", ours, outcome)
        self.assertIn("guest: Linux", theirs, outcome)
        self.assertEqual(self.kinds(ours) - self.kinds(theirs), set(), outcome)

    @staticmethod
    def kinds(console):
        """The messages without time and numbers."""
        messages = re.findall(r"^<[0-4]>\[[^]]*\] (.*)$", console, re.MULTILINE)
        return {re.sub(r"0x[0-9a-f]+|\d+", "N", message) for message in messages}


def add_complaints():
    for kernel in KERNELS:
        def test(self, kernel=kernel):
            if kernel not in ("iommufd", "debian-6.12"):
                self.need_full()
            self.complaints(kernel)

        def large(self, kernel=kernel):
            self.need_full()
            self.complaints(kernel, "vmlinux", 4, 3584)
        name = "test_" + kernel.replace("-", "_").replace(".", "_")
        setattr(Complaints, name, timeout(600)(test))
        if not kernel.endswith("-cloud"):
            setattr(Complaints, name + "_with_4_cpus_and_ram_above_4_gib", timeout(900, processors=2)(large))


add_complaints()
