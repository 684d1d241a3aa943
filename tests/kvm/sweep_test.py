"""Every system call of a run fails once: each time there is a clean end, or the run does not need the call."""
import os
import re

from program import HOST_ERROR, PATIENCE, SANITIZER, SUCCESS, Case, limits, out, pvh_image, say

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


class Sweep(Case):
    def sweep(self, name, *arguments):
        """Fails call 1, 2, ... of the run until none is left to fail. How many there were, and how many mattered."""
        inputs, failed, unbegun = set(self.files()), {}, 0
        for number in range(1, 5000):
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

    def image(self):
        return self.write("code.elf", pvh_image(REBOOTS_ONCE))

    def whole(self):
        """A run with all that start-up can do, and a reboot."""
        module = self.write("module", b"x" * 5000)
        return (self.image(), "--cpus", 2, "--memory", "4M", "--initrd", module, "--module", f"{module}=a", "--prefault",
                "--console", f"file:{os.path.join(self.folder, 'console')}", "--report", "report.json")

    def test_runs_without_failures(self):
        outcome = self.run_guest(*self.whole())
        self.assert_succeeds(outcome)
        with open(os.path.join(self.folder, "console"), "rb") as file:
            self.assertEqual(file.read(), b"aab")

    @limits(timeout=900)
    def test_of_every_call(self):
        whole = self.whole()  # makes the inputs
        calls, failed, unbegun = self.sweep("*", *whole)
        print(f"\n{calls} calls, of which {len(failed)} end the run with an error and {calls - len(failed)} do not; "
              f"{unbegun} of them before the console's file is begun")
        self.assertGreater(calls, 80)
        self.assertGreater(len(failed), 60)
        self.assertGreater(unbegun, 50)

    @limits(timeout=300)
    def test_of_every_ioctl_that_hello_needs_with_each_errno(self):
        for name, code in (("KVM_CREATE_VM", "EMFILE"), ("KVM_CREATE_VM", "ENOMEM"), ("KVM_CREATE_VCPU", "EEXIST"),
                           ("KVM_SET_USER_MEMORY_REGION", "EINVAL"), ("KVM_SET_USER_MEMORY_REGION", "ENOMEM"),
                           ("KVM_CREATE_IRQCHIP", "EEXIST"), ("KVM_GET_SUPPORTED_CPUID", "E2BIG"),
                           ("KVM_SET_CPUID2", "EINVAL"), ("KVM_SET_SREGS", "EINVAL"), ("mmap", "ENOMEM"),
                           ("memfd_create", "EMFILE"), ("ftruncate", "ENOSPC"), ("fcntl", "EPERM"), ("madvise", "ENOMEM"),
                           ("eventfd", "EMFILE"), ("epoll_create1", "EMFILE"), ("open", "EMFILE"), ("pread", "EIO"),
                           ("epoll_ctl", "ENOSPC")):
            outcome = self.run_guest("hello", "--failpoint", f"{name}={code}")
            with self.subTest(name=name, code=code):
                self.assert_refused(outcome, HOST_ERROR, name if name != "open" else "/dev/kvm")

    def test_of_calls_that_are_interrupted_is_harmless(self):
        for name in ("read", "write", "open", "pread", "KVM_CREATE_VCPU"):
            outcome = self.run_guest("hello", "--failpoint", f"{name}=delay(100)")
            self.assert_succeeds(outcome)
        outcome = self.run_guest("hello", "--failpoint", "KVM_RUN#5=EINTR*50", "--failpoint", "KVM_RUN#70=EAGAIN*50")
        self.assert_succeeds(outcome)

    def test_of_memory_that_KVM_cannot_reach_ends(self):
        # EFAULT for good: no BAR can be the cause, and it must not be tried for ever.
        outcome = self.run_guest("hello", "--console", "none", "--failpoint", "KVM_RUN#10=EFAULT")
        self.assertEqual(outcome.status, HOST_ERROR, outcome)
        self.assertRegex(outcome.err, r"crossbar: host-error: vCPU 0: KVM_RUN: Bad address \(rip 0x[0-9a-f]+ ")
        self.assertLess(len(outcome.err.splitlines()), 10, outcome)
