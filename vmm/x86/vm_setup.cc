#include "vmm/x86/vm_setup.h"

#include "base/kvm_uapi.h"
#include "base/sys.h"
#include "boot/platform_info.h"
#include "vmm/x86/cpuid.h"
#include "vmm/x86/msr.h"

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

Result<> PrepareX86Vcpu(int vcpu_fd, std::span<const kvm_cpuid_entry2> cpuid) {
  TRY(SetCpuid(vcpu_fd, cpuid));
  // On, and write-back where no range says otherwise. Off, as after a reset, they make all RAM
  // uncached, and Linux uses no PAT either: no write combining.
  constexpr uint32_t kMtrrDefType = 0x2ff;
  constexpr uint64_t kOnAndWriteBack = 1u << 11 | 6;
  return WriteMsr(vcpu_fd, kMtrrDefType, kOnAndWriteBack);
}

}  // namespace crossbar
