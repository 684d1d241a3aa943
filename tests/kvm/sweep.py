"""Sweeps: every call of a run fails once, and each time there is a clean end, or the run does not need the call."""
import os
import re

from program import HOST_ERROR, PATIENCE, SUCCESS, Case, out, pvh_image, say

# Where devices start and end with each run there are many calls, and all take long.
DEVICE_STEP = 1 if os.environ.get("CROSSBAR_LAB_FULL") else 17  # scripts/test --full sets it

CLEAN = re.compile(r"crossbar: [^\n]+")
LOG = re.compile(r"crossbar +\d+\.\d+ (error|warning|info): [^\n]+")
FIRED = re.compile(r" info: failpoints fired (\d+) times")

# Boots, says a, writes both boot markers; the second time it says b and exits, the first time it resets the machine.
FLAG = (0x5000).to_bytes(4, "little")
ENDS = say(b"b") + out(0xF4, 0)
REBOOTS_ONCE = (out(0x80, 0x40) + say(b"a") + out(0x80, 0x41) +
                b"\x80\x3d" + FLAG + b"\x00\x74" + bytes([len(ENDS)]) +  # cmp byte [flag], 0; je past the end
                ENDS +
                b"\xc6\x05" + FLAG + b"\x01" + out(0xCF9, 0x06))


class SweepCase(Case):
    def image(self):
        return self.write("code.elf", pvh_image(REBOOTS_ONCE))

    def with_outputs(self, *arguments):
        """The arguments of a run of the image, with the two files that a whole run makes."""
        return (self.image(), *arguments, "--console", f"file:{os.path.join(self.folder, 'console')}",
                "--report", "report.json")

    def after_failure(self, context):
        """What else is to be looked at after a run that ended with an error."""

    def sweep(self, name, *arguments, step=1):
        """Fails call 1, 1 + step, ... of the run until none is left to fail. How many there were, and how many mattered.

        Each run does what the one before did and more, so it also shows that nothing is left of that in its way.
        """
        inputs, failed, unbegun = set(self.files()), {}, 0
        for number in range(1, 5000, step):
            rule = f"{name}#{number}=EIO*1"
            outcome = self.run_guest(*arguments, "--failpoint", rule, "--log", "info")
            # How far the prefault is shows where it takes long.
            lines = [line for line in outcome.err.splitlines() if not line.startswith("crossbar: guest RAM ")]
            context = f"{rule}: {outcome}"
            self.assertIn(outcome.status, (SUCCESS, HOST_ERROR), context)
            clean = [line for line in lines if CLEAN.fullmatch(line)]
            self.assertEqual(len(clean), int(outcome.status == HOST_ERROR), context)
            self.assertTrue(all(CLEAN.fullmatch(line) or LOG.fullmatch(line) for line in lines), context)
            self.assertLess(outcome.seconds, PATIENCE / 2, context)
            made = set(self.files()) - inputs
            if outcome.status == HOST_ERROR:
                failed[number] = clean[0]
                # The guest may have begun by then, and may have ended too.
                self.assertIn(made, (set(), {"console"}, {"console", "report.json"}), context)
                self.after_failure(context)
            else:
                self.assertEqual(made, {"console", "report.json"}, context)
            if "console" not in made:
                unbegun += 1
            for file in made:
                os.unlink(os.path.join(self.folder, file))
            fired = FIRED.search(outcome.err)
            self.assertIsNotNone(fired, context)
            if fired.group(1) == "0":
                self.assertEqual(outcome.status, SUCCESS, context)
                return number - 1, failed, unbegun
        return self.fail("it never ends")
