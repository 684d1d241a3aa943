"""Every guest boots, by each protocol, and passes its own checks; and what ends a run says so by its status."""
import contextlib
import mmap
import os
import re
import resource
import signal
import struct
import time

from program import (CRASH, HALT, HOST_ERROR, IN_LAB, POWER_OFF, SANITIZER, SPIN, STOPPED, SUCCESS, Case, debug_exit, limits,
                     pvh_image, say)

MIB = 1 << 20
GIB = 1 << 30


class Guests(Case):
    def assert_passes(self, name, *arguments, cpus=(1, 2, 4)):
        for count in cpus:
            with self.subTest(cpus=count):
                outcome = self.run_guest(name, "--cpus", count, *arguments)
                self.assert_succeeds(outcome)
        return outcome

    def test_hello(self):
        outcome = self.assert_passes("hello", "--cmdline", "one two=3")
        self.assertIn("  boot     PVH, modules: 1, device tree", outcome.lines())
        self.assertIn('  command  "one two=3"', outcome.lines())
        self.assertIn("  CPUs     4, this one has APIC id 0", outcome.lines())

    def test_smp(self):
        most = 16 if IN_LAB else 254
        outcome = self.assert_passes("smp", cpus=(1, 2, 4, most))
        self.assertIn(f"  CPU {most - 1}: APIC id {most - 1}", outcome.lines())

    def test_irq(self):
        self.assert_passes("irq")

    def test_pci_scan(self):
        outcome = self.assert_passes("pci_scan", cpus=(1, 2))
        self.assertRegex(outcome.lines()[0], r"^00:00\.0 \w{4}:\w{4} rev \w\w class 060000")
        self.assertEqual(outcome.lines()[-1], "1 functions, by ECAM and ports")

    def test_poweroff(self):
        for cpus in (1, 2, 4):
            outcome = self.run_guest("poweroff", "--cpus", cpus)
            self.assertEqual((outcome.status, outcome.err), (POWER_OFF, ""), outcome)

    def test_reboot(self):
        outcome = self.assert_passes("reboot", "--cmdline", "reboots=5")
        self.assertEqual([line for line in outcome.lines() if line.startswith("boot ")],
                         [f"boot {n} of 6" for n in range(1, 7)])
        self.assertEqual(outcome.lines()[-1], "5 reboots, power-on state each time")


class StringPorts(Case):
    def test_read_every_item(self):
        # KVM hands over the 16 bytes of a REP INSB in one exit; nobody is at the port, so that each is all ones.
        last = (0x600F).to_bytes(4, "little")
        code = b"\xbf\x00\x60\0\0\xb9\x10\0\0\0\x66\xba\xf8\x02\xfc\xf3\x6c"  # edi, ecx, dx; cld; rep insb
        good = debug_exit(0)
        code += b"\x80\x3d" + last + b"\xff\x75" + bytes([len(good)]) + good + debug_exit(1)  # cmp byte [last], 0xff
        self.assert_succeeds(self.run_guest(self.write("code.elf", pvh_image(code))))


class BootProtocols(Case):
    """The initrd is the first module, those of --module follow with their arguments."""

    def setUp(self):
        super().setUp()
        self.initrd = self.write("initrd", b"\x01" * 5000)
        self.module = self.write("module", b"\x02" * 33)

    def test_elf64_by_pvh(self):
        outcome = self.run_guest("hello", "--initrd", self.initrd, "--module", f"{self.module}=a b", "--cmdline", "c")
        self.assert_succeeds(outcome)
        self.assertIn("  boot     PVH, modules: 3, device tree", outcome.lines())

    def test_elf32_by_pvh(self):
        outcome = self.run_guest("hello32", "--initrd", self.initrd, "--cmdline", "32-bit file")
        self.assert_succeeds(outcome)
        self.assertIn("  boot     PVH, modules: 2, device tree", outcome.lines())
        self.assertIn('  command  "32-bit file"', outcome.lines())

    def test_multiboot(self):
        for cpus in (1, 2):
            outcome = self.run_guest("multiboot", "--cpus", cpus, "--cmdline", "c=d", "--initrd", self.initrd,
                                     "--module", f"{self.module}=a b", "--module", self.module)
            self.assert_succeeds(outcome)
            modules = [line.split()[-4:] for line in outcome.lines() if line.startswith("  module")]
            self.assertEqual([(words[0], words[3]) for words in modules],
                             [("5000", hex(5000)), ("33", hex(66)), ("33", hex(66))], outcome)
            self.assertRegex(outcome.out, rb'  module   "[^"\n]*a b" 33 bytes')
            self.assertRegex(outcome.out, rb'  command  "[^"\n]*c=d"')
            self.assertEqual(outcome.lines()[-1], "3 modules")

    def test_a_module_that_is_a_whole_RAM_away_is_intact(self):
        data = bytes(range(256)) * 4096 * 20  # 20 MiB
        outcome = self.run_guest("multiboot", "--memory", "64M", "--initrd", self.write("large", data))
        self.assert_succeeds(outcome)
        self.assertIn(f"{len(data)} bytes, sum {hex(sum(data))}", outcome.out.decode())


class Memory(Case):
    def assert_banks(self, size, banks, *arguments):
        """The memory guest passes with `size` of RAM, and finds these [start, end) banks."""
        outcome = self.run_guest("memory", "--memory", size, *arguments)
        self.assert_succeeds(outcome)
        found = re.findall(r"RAM 0x(\w+)-0x(\w+)", outcome.out.decode())
        self.assertEqual([(int(start, 16), int(last, 16) + 1) for start, last in found], banks, outcome)

    def test_least(self):
        self.assert_banks("2M", [(0, 2 * MIB)])

    def test_64M(self):
        self.assert_banks("64M", [(0, 64 * MIB)])

    def test_up_to_the_hole(self):
        self.assert_banks("3G", [(0, 3 * GIB)])

    def test_3_5G_reaches_above_the_hole(self):
        self.assert_banks("3.5G", [(0, 3 * GIB), (4 * GIB, 4 * GIB + 512 * MIB)])

    def test_5G_on_two_CPUs(self):
        self.assert_banks("5G", [(0, 3 * GIB), (4 * GIB, 6 * GIB)], "--cpus", 2)

    def test_prefaulted(self):
        self.assert_banks("64M", [(0, 64 * MIB)], "--prefault")


@contextlib.contextmanager
def huge_pages(case, kilobytes, count):
    """`count` free huge pages for the time being, or the test is skipped."""
    path = f"/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages"
    try:
        with open(path, encoding="ascii") as file:
            before = int(file.read())
        with open(path, "w", encoding="ascii") as file:
            file.write(str(before + count))
    except OSError as error:
        case.skipTest(f"cannot reserve huge pages: {error}")
    try:
        with open(path.replace("nr_", "free_"), encoding="ascii") as file:
            if int(file.read()) < count:
                case.skipTest(f"the host has no {count} huge pages of {kilobytes} KiB to spare")
        yield
    finally:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(before))


class HugePages(Case):
    def check(self, option, kilobytes, count, memory):
        with huge_pages(self, kilobytes, count):
            path = self.write("report", b"")
            outcome = self.run_guest("memory", "--memory", memory, "--hugepages", option, "--report", path)
            self.assert_succeeds(outcome)
            with open(path, encoding="utf-8") as file:
                self.assertIn(f'"page_bytes": {kilobytes * 1024}', file.read())

    @limits(alone=True)
    def test_2M(self):
        self.check("2M", 2048, 32, "64M")

    @limits(alone=True)
    def test_1G(self):
        self.check("1G", 1048576, 1, "1G")

    @limits(alone=True)
    def test_too_few(self):
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", encoding="ascii") as file:
            if int(file.read()) >= 1024:
                self.skipTest("the host has more huge pages free than this test asks for")
        outcome = self.run_guest("hello", "--memory", "2G", "--hugepages", "2M")
        self.assert_refused(outcome, HOST_ERROR, "1024 huge pages", "nr_hugepages")

    @limits(alone=True)
    def test_too_few_counts_all_banks_and_the_pages_of_others(self):
        def count(name):
            with open(f"/sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages", encoding="ascii") as file:
                return int(file.read())
        with huge_pages(self, 2048, 8), mmap.mmap(-1, 4 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000):
            usable = count("free") - count("resv")  # two are the mapping's
            if usable >= 1600:
                self.skipTest("the host has more huge pages free than this test asks for")
            outcome = self.run_guest("hello", "--memory", "3.125G", "--hugepages", "2M")
            self.assert_refused(outcome, HOST_ERROR, f"1600 huge pages of 2 MiB and {usable} are free",
                                f"echo {count('nr') + 1600 - usable} > /sys/")


class Prefault(Case):
    """Progress shows where it takes longer than a second, which 8 GiB do not everywhere: a slowed call does."""

    SLOW = ("--prefault", "--failpoint", "madvise=delay(150000)")  # 32 MiB a call

    def test_a_short_one_is_silent(self):
        self.assert_succeeds(self.run_guest("hello", "--memory", "64M", "--prefault"))

    def test_a_long_one_reports_in_lines(self):
        outcome = self.run_guest("hello", "--memory", "1G", *self.SLOW)
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertRegex(outcome.err, r"\A(crossbar: guest RAM \d+ of 1024 MiB\n)+\Z")

    def test_a_long_one_draws_a_bar_on_a_terminal(self):
        session = self.start("hello", "--memory", "1G", *self.SLOW, terminal=True, stderr="terminal")
        session.expect("guest RAM")
        outcome = session.finish()
        self.assertEqual(outcome.status, SUCCESS, outcome)
        bars = re.findall(rb"\r\[(#*)(\.*)\] guest RAM (\d+) of 1024 MiB", outcome.out)
        self.assertGreater(len(bars), 2, outcome)
        done = [int(amount) for _, _, amount in bars]
        self.assertEqual(done, sorted(done))
        self.assertTrue(all(len(full) + len(empty) == 40 for full, empty, _ in bars), outcome)
        self.assertRegex(outcome.out, rb"MiB\r\nHello", "the bar has no line of its own")

    @limits(timeout=300)
    def test_of_both_sides_of_the_hole(self):
        with open("/proc/meminfo", encoding="ascii") as file:
            available = int(re.search(r"MemAvailable:\s+(\d+)", file.read()).group(1)) * 1024
        if available < 5 * GIB:
            self.skipTest(f"the host has {available >> 20} MiB available, and this needs 5 GiB")
        outcome = self.run_guest("hello", "--memory", "3.5G", "--prefault", seconds=280)
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertRegex(outcome.err, r"\A(crossbar: guest RAM \d+ of 3584 MiB\n)*\Z")
        if outcome.seconds > 5:
            self.assertNotEqual(outcome.err, "")


def two_cpus(code):
    """Has CPU 1 write x to the serial port without end, and CPU 0 do `code` once there are 1000."""
    def store(address, value):
        return b"\xc7\x05" + struct.pack("<II", address, value)  # mov dword [address], value
    # In real mode: mov dx, 0x3f8; mov al, 'x'; 1: out dx, al; inc word [0x9000]; jmp 1b
    other = b"\xba\xf8\x03\xb0x" + b"\xee\xff\x06\x00\x90\xeb\xf9"
    copy = b"".join(store(0x8000 + 4 * at, word) for at, word in enumerate(struct.unpack("<3I", other)))
    # The local APIC: on; to CPU 1; INIT; start-up at page 8.
    wake = store(0xFEE000F0, 0x1FF) + store(0xFEE00310, 1 << 24) + store(0xFEE00300, 0x4500) + store(0xFEE00300, 0x4608)
    wait = b"\x66\x81\x3d" + struct.pack("<IH", 0x9000, 1000) + b"\x72\xf5"  # 1: cmp word [0x9000], 1000; jb 1b
    return copy + store(0x9000, 0) + wake + wait + code


class ExitStatus(Case):
    def run_code(self, code, *arguments, **options):
        return self.run_guest(self.write("code.elf", pvh_image(code)), *arguments, **options)

    def test_of_debug_exit_is_the_value_shifted_and_odd(self):
        for value in (0, 1, 2, 41, 127):
            outcome = self.run_code(debug_exit(value))
            self.assertEqual((outcome.status, outcome.err), (value << 1 | 1, ""), outcome)

    def test_of_a_large_value_has_its_low_7_bits(self):
        """As under QEMU, so that 128 reads as success."""
        for value, status in ((128, SUCCESS), (200, (200 - 128) << 1 | 1), (255, 255)):
            outcome = self.run_code(debug_exit(value))
            self.assertEqual((outcome.status, outcome.err), (status, ""), outcome)

    def test_of_a_guest_whose_check_fails_is_the_number_of_the_check(self):
        # No interrupt of the serial port arrives: irq's check 6.
        outcome = self.run_guest("irq", "--failpoint", "KVM_IRQ_LINE=EIO")
        self.assertEqual(outcome.status, 6 << 1 | 1, outcome)
        self.assertRegex(outcome.err, r"\A(crossbar [^\n]* interrupt lost: KVM_IRQ_LINE: [^\n]*\n){1,9}\Z")

    def test_of_a_triple_fault(self):
        for cpus in (1, 2):
            outcome = self.run_guest("crash", "--cpus", cpus)
            self.assertEqual(outcome.status, CRASH, outcome)
            self.assertRegex(outcome.err, r"\Acrossbar: guest-crash: vCPU 0: triple fault \(rip 0x[0-9a-f]+ [^\n]*\)\n\Z")

    def test_of_a_triple_fault_names_the_place(self):
        # lidt [zeros]; ud2. The zeros are the image's own.
        lidt_at = 0x100000
        code = b"\x0f\x01\x1d" + (lidt_at + 16).to_bytes(4, "little") + b"\x0f\x0b"
        outcome = self.run_code(code.ljust(32, b"\0"))
        self.assertEqual(outcome.status, CRASH, outcome)
        if os.path.exists("/sys/module/kvm_amd"):  # it resets a vCPU that shuts down
            self.assertIn("vCPU 0: triple fault (rip 0xfff0 ", outcome.err)
            self.assertIn("KVM has not kept the place", outcome.err)
        else:
            self.assertIn("vCPU 0: triple fault (rip 0x100007 ", outcome.err)

    def test_of_a_signal(self):
        for code in (SPIN, HALT):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                image = self.write("code.elf", pvh_image(say(b"running") + code))
                session = self.start(image, "--cpus", 2)
                session.expect("running")
                began = time.monotonic()
                session.signal(number)
                outcome = session.finish()
                self.assertEqual((outcome.status, outcome.err), (STOPPED, ""), f"{number} {outcome}")
                self.assertLess(time.monotonic() - began, 5 if SANITIZER else 2)

    def test_of_a_signal_that_comes_many_times(self):
        session = self.start(self.write("code.elf", pvh_image(say(b"running") + SPIN)))
        session.expect("running")
        for _ in range(50):
            session.signal(signal.SIGTERM)
            session.signal(signal.SIGINT)
        self.assertEqual(session.finish().status, STOPPED)

    def test_of_a_guest_that_ends_itself_right_after_its_output(self):
        outcome = self.run_code(say(b"x" * 5000) + debug_exit(3))
        self.assertEqual((outcome.status, outcome.out), (7, b"x" * 5000))

    def test_of_a_guest_that_writes_on_while_another_CPU_ends_it(self):
        for _ in range(5):
            outcome = self.run_code(two_cpus(debug_exit(3)), "--cpus", 2)
            self.assertEqual((outcome.status, outcome.err, set(outcome.out)), (7, "", set(b"x")), outcome)
            self.assertGreaterEqual(len(outcome.out), 1000)


class Descriptors(Case):
    def test_are_all_closed_on_exec(self):
        image = self.write("code.elf", pvh_image(say(b"running") + SPIN))
        session = self.start(image, "--cpus", 2, "--report", "report.json", "--initrd", image, "--module", image)
        session.expect("running")
        folder = f"/proc/{session.process.pid}/fdinfo"
        inherited, seen = [], 0
        for fd in os.listdir(folder):
            with open(f"{folder}/{fd}", encoding="ascii") as file:
                flags = int(re.search(r"^flags:\s*(\d+)", file.read(), re.MULTILINE).group(1), 8)
            seen += 1
            if int(fd) > 2 and not flags & os.O_CLOEXEC:
                inherited.append((fd, os.readlink(f"/proc/{session.process.pid}/fd/{fd}")))
        self.assertEqual(inherited, [])
        self.assertGreater(seen, 8)
        session.signal(signal.SIGTERM)
        self.assertEqual(session.finish().status, STOPPED)

    def test_are_as_many_as_may_be(self):
        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        outcome = self.run_guest("hello", "--report", "report.json", before=few)
        self.assertEqual((outcome.status, outcome.err), (SUCCESS, ""), outcome)

    def test_closed_standard_ones_are_not_taken_for_others(self):
        # Without care /dev/kvm or guest RAM gets number 1, and the console writes there.
        for closed in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
            with self.subTest(closed=closed):
                session = self.start("hello", "--report", "report.json",
                                     before=lambda: [os.close(fd) for fd in closed])
                outcome = session.finish()
                self.assertEqual((outcome.status, outcome.err), (SUCCESS, ""), outcome)
                self.assertEqual(outcome.out == b"", 1 in closed, outcome)
                os.unlink(os.path.join(self.folder, "report.json"))
