// Keeps one empty VM for as long as the lab machine runs.
//
// The first VM of a host makes Linux patch its scheduler (kvm_create_vm, preempt_notifier_inc: a static key), and the end of
// the last one patches it back. A test that starts Crossbar a thousand times does so a thousand times, and an emulated CPU
// now and then runs the breakpoint of such a patch after it is gone: the lab kernel panics. With this VM nothing is patched.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void) {
  const int kvm = open("/dev/kvm", O_RDWR);
  if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0) {
    perror("/dev/kvm");
    return 1;
  }
  for (;;) pause();
}
