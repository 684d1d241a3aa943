"""Every system call of a run fails once: each time there is a clean end, or the run does not need the call."""
import os

from program import HOST_ERROR, limits
from sweep import DEVICE_STEP, SweepCase


class Sweep(SweepCase):
    def whole(self):
        """A run with all that start-up can do, and a reboot."""
        module = self.write("module", b"x" * 5000)
        return self.with_outputs("--cpus", 2, "--memory", "4M", "--initrd", module, "--module", f"{module}=a", "--prefault")

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

    @limits(timeout=900)
    def test_of_calls_with_devices_in_other_processes(self):
        devices = ("--device", "model=dma", "--device", "model=memory,size=1M")
        calls, failed, unbegun = self.sweep("*", *self.with_outputs("--memory", "4M", *devices), step=DEVICE_STEP)
        print(f"\n{calls} calls, of which every {DEVICE_STEP}. failed; {len(failed)} ended the run with an error")
        self.assertGreater(calls, 150)
        self.assertGreater(len(failed), 60 // DEVICE_STEP)
        self.assertGreater(unbegun, 60 // DEVICE_STEP)

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
