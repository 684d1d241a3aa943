"""Guests that mean harm: the VMM survives, and says little (G12)."""
from program import CRASH, HOST_ERROR, STOPPED, SUCCESS, Case, debug_exit, limits, out, pvh_image, say

SEEDS = range(1, 9)


class Hostile(Case):
    def assert_survives(self, seed, *arguments, cpus=1):
        outcome = self.run_guest("wild", "--cmdline", f"seed={seed} count=1500", "--cpus", cpus, *arguments)
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertEqual(outcome.lines()[-1], f"alive after {1500 * cpus} accesses", outcome)
        # A burst from each place that logs, then one a second.
        self.assertLess(len(outcome.err.splitlines()), 60 + 10 * outcome.seconds, outcome)
        for line in outcome.err.splitlines():
            self.assertRegex(line, r"^crossbar +\d+\.\d+ warning: ")

    @limits(timeout=300)
    def test_accesses_of_every_kind_on_one_CPU(self):
        for seed in SEEDS:
            with self.subTest(seed=seed):
                self.assert_survives(seed)

    @limits(timeout=300)
    def test_accesses_of_every_kind_on_two_CPUs(self):
        for seed in SEEDS:
            with self.subTest(seed=seed):
                self.assert_survives(100 + seed, cpus=2)

    @limits(timeout=300)
    def test_accesses_with_RAM_above_the_hole(self):
        for seed in (201, 202):
            self.assert_survives(seed, "--memory", "3.5G")

    def run_code(self, code, *arguments):
        return self.run_guest(self.write("code.elf", pvh_image(code)), *arguments)

    def test_0x00_and_0xff_to_every_port_below_0x1100_but_those_that_end_it(self):
        ends = {0xF4, 0xF5, 0xF6, 0xF7, 0x64, 0xCF9, 0x600}
        for value in (0x00, 0xFF):
            ports = [port for port in range(0x1100) if port not in ends]
            outcome = self.run_code(b"".join(out(port, value) for port in ports) + debug_exit(0), "--console", "none")
            self.assertEqual(outcome.status, SUCCESS, outcome)
            self.assertLess(len(outcome.err.splitlines()), 60, outcome)

    def test_a_flood_of_messages_is_held_back(self):
        # Raises and drops the serial port's interrupt 3000 times; each fails, which is worth a line.
        toggle = out(0x3F9, 2) + out(0x3F9, 0)
        loop = b"\xb9" + (3000).to_bytes(4, "little") + toggle + b"\x49\x75" + bytes([0x100 - len(toggle) - 3])
        outcome = self.run_code(out(0x3FC, 8) + loop + debug_exit(0), "--failpoint", "KVM_IRQ_LINE=EIO")
        self.assertEqual(outcome.status, SUCCESS, outcome)
        lines = outcome.err.splitlines()
        self.assertTrue(all("interrupt lost" in line for line in lines), outcome)
        self.assertGreaterEqual(len(lines), 5, outcome)
        self.assertLess(len(lines), 10 + outcome.seconds, outcome)

    def test_code_that_jumps_into_nothing(self):
        for target in (0xC0000000, 0xE0000000, 0xFEC00000, 0xFEE00000, 0xFFFFFFF0, 0x40000000):
            with self.subTest(target=hex(target)):
                session = self.start(self.write("code.elf", pvh_image(
                    say(b"go") + b"\xb8" + target.to_bytes(4, "little") + b"\xff\xe0")))
                session.expect("go")
                try:
                    session.until(lambda: session.process.poll() is not None, 3)
                except self.failureException:
                    session.signal(15)
                outcome = session.finish()
                self.assertIn(outcome.status, (CRASH, HOST_ERROR, STOPPED), outcome)
                self.assertLessEqual(len(outcome.err.splitlines()), 20, outcome)

    def test_a_stream_of_resets(self):
        # Resets the machine at once, again and again; a signal still ends it.
        for level in ("warning", "info"):
            session = self.start(self.write("code.elf", pvh_image(say(b"!") + out(0xCF9, 0x06))), "--cpus", 2,
                                 "--log", level)
            session.expect("!" * 50)
            session.signal(15)
            outcome = session.finish()
            self.assertEqual(outcome.status, STOPPED, outcome)
            lines = outcome.err.splitlines()
            self.assertTrue(all(" info: reboot " in line for line in lines), outcome)
            if level == "warning":
                self.assertEqual(lines, [], outcome)
            else:
                self.assertGreaterEqual(len(lines), 5, outcome)
                self.assertLess(len(lines), 10 + outcome.seconds, outcome)
