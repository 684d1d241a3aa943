#include "vmm/kvm_irq_line.h"

#include "base/kvm_uapi.h"
#include "base/log.h"
#include "base/sys.h"

namespace crossbar {

void KvmIrqLine::Set(bool asserted) {
  kvm_irq_level level{};
  level.irq = gsi_;
  level.level = asserted ? 1 : 0;
  static RateLimit limit;
  if (const Result<int> set = sys::Ioctl(vm_fd_, SYS_REQUEST(KVM_IRQ_LINE), &level); !set)
    LogGuest(limit, "interrupt lost: {}", set.error().message());
}

}  // namespace crossbar
