#include "vmm/x86/power_on_state.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "base/sys.h"
#include "vmm/x86/msr.h"
#include "vmm/x86/vm_setup.h"

namespace crossbar {
namespace {

// Time goes on over a reboot, and KVM takes no writes to these that would set it back sensibly.
constexpr std::array<uint32_t, 2> kKeptMsrs = {
    0x10,  // IA32_TIME_STAMP_COUNTER
    0x3b,  // IA32_TSC_ADJUST
};

// MTRRs: KVM keeps them, but leaves them out of its list.
constexpr std::array<uint32_t, 28> kUnlistedMsrs = {
    0x2ff,                                                   // IA32_MTRR_DEF_TYPE
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,  // IA32_MTRR_PHYSBASE0, _PHYSMASK0 ...
    0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
    0x250, 0x258, 0x259,                                     // IA32_MTRR_FIX64K, FIX16K
    0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,  // IA32_MTRR_FIX4K
};

Result<std::vector<uint32_t>> MsrIndices(int kvm_fd) {
  kvm_msr_list probe{};
  const int result = sys::TryIoctl(kvm_fd, SYS_REQUEST(KVM_GET_MSR_INDEX_LIST), &probe);
  if (result < 0 && result != -E2BIG)  // E2BIG is how it tells the count
    return std::unexpected(sys::ErrnoError(-result, "KVM_GET_MSR_INDEX_LIST"));
  std::vector<uint32_t> storage(probe.nmsrs + 1);
  storage[0] = probe.nmsrs;
  TRY(sys::Ioctl(kvm_fd, SYS_REQUEST(KVM_GET_MSR_INDEX_LIST), storage.data()));
  std::vector<uint32_t> indices(storage.begin() + 1, storage.end());
  indices.insert(indices.end(), kUnlistedMsrs.begin(), kUnlistedMsrs.end());
  return indices;
}

constexpr uint32_t kFeatureControl = 0x3a;

// KVM lists some MSRs that this vCPU does not have: those it refuses are left out.
std::vector<PowerOnState::Msr> ReadMsrs(int vcpu_fd, std::span<const uint32_t> indices) {
  std::vector<PowerOnState::Msr> msrs;
  for (const uint32_t index : indices) {
    if (std::ranges::find(kKeptMsrs, index) != kKeptMsrs.end()) continue;
    if (const Result<uint64_t> value = ReadMsr(vcpu_fd, index)) msrs.push_back({index, *value});
  }
  return msrs;
}

// What KVM lets us read it may not let us write (capabilities of the CPU): those did not change.
void WriteMsrs(int vcpu_fd, std::span<const PowerOnState::Msr> msrs) {
  for (const PowerOnState::Msr& msr : msrs) {
    if (!WriteMsr(vcpu_fd, msr.index, msr.value))
      LogDebug("MSR {:#x} keeps its value over the reboot", msr.index);
  }
}

// kvm_xsave, as long as the CPU's features make it.
Result<std::vector<std::byte>> ReadXsave(int vm_fd, int vcpu_fd) {
  const int size = TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_CHECK_EXTENSION), KVM_CAP_XSAVE2));
  std::vector<std::byte> xsave(std::max(static_cast<size_t>(size), sizeof(kvm_xsave)));
  TRY(sys::Ioctl(vcpu_fd, SYS_REQUEST(KVM_GET_XSAVE2), xsave.data()));
  return xsave;
}

}  // namespace

Result<PowerOnState> PowerOnState::Capture(const Kvm& kvm, const GuestCpuid& cpuid,
                                           std::span<const uint32_t> ids) {
  PowerOnState state;
  const std::vector<uint32_t> msrs = TRY(MsrIndices(kvm.fd()));
  const Fd vm = TRY(kvm.CreateVm());
  TRY(PrepareX86Vm(vm.get()));
  for (const uint32_t id : ids) {
    const Fd vcpu(TRY(sys::Ioctl(vm.get(), SYS_REQUEST(KVM_CREATE_VCPU), id)));
    TRY(PrepareX86Vcpu(vcpu.get(), cpuid.ForCpu(id, static_cast<unsigned>(ids.size()))));
    state.cpus_.push_back(TRY(CaptureCpu(vm.get(), vcpu.get(), msrs)));
  }
  for (uint32_t i = 0; i < state.chips_.size(); ++i) {
    state.chips_[i].chip_id = i;  // KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC
    TRY(sys::Ioctl(vm.get(), SYS_REQUEST(KVM_GET_IRQCHIP), &state.chips_[i]));
  }
  return state;
}

Result<PowerOnState::Cpu> PowerOnState::CaptureCpu(int vm_fd, int fd,
                                                    std::span<const uint32_t> msrs) {
  Cpu cpu{};
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_REGS), &cpu.regs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_SREGS), &cpu.sregs));
  cpu.xsave = TRY(ReadXsave(vm_fd, fd));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_DEBUGREGS), &cpu.debugregs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_XCRS), &cpu.xcrs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_LAPIC), &cpu.lapic));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_VCPU_EVENTS), &cpu.events));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_MP_STATE), &cpu.mp_state));
  cpu.msrs = ReadMsrs(fd, msrs);
  return cpu;
}

Result<> PowerOnState::RestoreVcpu(size_t index, int fd) const {
  CHECK(index < cpus_.size());
  const Cpu& cpu = cpus_[index];
  // Written by the host, 0 ends VMX operation, in which KVM refuses a CR4 without VMXE (arch/x86/kvm/vmx/vmx.c,
  // MSR_IA32_FEAT_CTL). A CPU without VMX has no such MSR.
  (void)WriteMsr(fd, kFeatureControl, 0);
  // The APIC base MSR is among the sregs, and what the LAPIC's registers mean depends on it.
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_SREGS), &cpu.sregs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_REGS), &cpu.regs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_XSAVE), cpu.xsave.data()));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_DEBUGREGS), &cpu.debugregs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_XCRS), &cpu.xcrs));
  WriteMsrs(fd, cpu.msrs);
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_LAPIC), &cpu.lapic));
  kvm_vcpu_events events = cpu.events;
  // The flags say which parts are valid: on the way in that is "take these too".
  events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                  KVM_VCPUEVENT_VALID_SHADOW;
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_VCPU_EVENTS), &events));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_MP_STATE), &cpu.mp_state));
  return {};
}

Result<> PowerOnState::RestoreInterruptControllers(int vm_fd) const {
  for (const kvm_irqchip& chip : chips_)
    TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_SET_IRQCHIP), &chip));
  return {};
}

}  // namespace crossbar
