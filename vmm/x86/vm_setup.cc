#include "vmm/x86/vm_setup.h"

#include "base/kvm_uapi.h"
#include "base/sys.h"
#include "boot/platform_info.h"

namespace crossbar {

Result<> PrepareX86Vm(int vm_fd) {
  // Both are needed on Intel CPUs without unrestricted guests and harmless elsewhere (KVM API,
  // 4.41 and 4.79).
  const uint64_t identity_map = kX86IdentityMap.start.value();
  TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_SET_IDENTITY_MAP_ADDR), &identity_map));
  TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_SET_TSS_ADDR), kX86TaskState.start.value()));
  TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_CREATE_IRQCHIP)));
  return {};
}

}  // namespace crossbar
