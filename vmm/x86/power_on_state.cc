#include "vmm/x86/power_on_state.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "base/sys.h"
#include "vmm/x86/vm_setup.h"

namespace crossbar {
namespace {

// Time goes on over a reboot, and KVM takes no writes to these that would set it back sensibly.
constexpr std::array<uint32_t, 2> kKeptMsrs = {
    0x10,  // IA32_TIME_STAMP_COUNTER
    0x3b,  // IA32_TSC_ADJUST
};

struct MsrBuffer {
  explicit MsrBuffer(size_t count) : bytes(sizeof(kvm_msrs) + count * sizeof(kvm_msr_entry)) {
    header()->nmsrs = static_cast<uint32_t>(count);
  }
  kvm_msrs* header() { return reinterpret_cast<kvm_msrs*>(bytes.data()); }
  kvm_msr_entry* entries() { return header()->entries; }
  std::vector<std::byte> bytes;
};

Result<std::vector<uint32_t>> MsrIndices(int kvm_fd) {
  kvm_msr_list probe{};
  const int result = sys::TryIoctl(kvm_fd, SYS_REQUEST(KVM_GET_MSR_INDEX_LIST), &probe);
  if (result < 0 && result != -E2BIG)  // E2BIG is how it tells the count
    return std::unexpected(sys::ErrnoError(-result, "KVM_GET_MSR_INDEX_LIST"));
  std::vector<uint32_t> storage(probe.nmsrs + 1);
  storage[0] = probe.nmsrs;
  TRY(sys::Ioctl(kvm_fd, SYS_REQUEST(KVM_GET_MSR_INDEX_LIST), storage.data()));
  return std::vector<uint32_t>(storage.begin() + 1, storage.end());
}

// KVM lists some MSRs that this vCPU does not have: those it refuses are left out.
std::vector<kvm_msr_entry> ReadMsrs(int vcpu_fd, std::span<const uint32_t> indices) {
  std::vector<kvm_msr_entry> values;
  MsrBuffer one(1);
  for (const uint32_t index : indices) {
    if (std::ranges::find(kKeptMsrs, index) != kKeptMsrs.end()) continue;
    one.entries()[0] = {};
    one.entries()[0].index = index;
    if (sys::TryIoctl(vcpu_fd, SYS_REQUEST(KVM_GET_MSRS), one.header()) == 1)
      values.push_back(one.entries()[0]);
  }
  return values;
}

// What KVM lets us read it may not let us write (capabilities of the CPU): those did not change.
void WriteMsrs(int vcpu_fd, std::span<const kvm_msr_entry> values) {
  MsrBuffer one(1);
  for (const kvm_msr_entry& value : values) {
    one.entries()[0] = value;
    if (sys::TryIoctl(vcpu_fd, SYS_REQUEST(KVM_SET_MSRS), one.header()) != 1)
      LogDebug("MSR {:#x} keeps its value over the reboot", uint32_t{value.index});
  }
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
    TRY(SetCpuid(vcpu.get(), cpuid.ForCpu(id, static_cast<unsigned>(ids.size()))));
    state.cpus_.push_back(TRY(CaptureCpu(vcpu.get(), msrs)));
  }
  for (uint32_t i = 0; i < state.chips_.size(); ++i) {
    state.chips_[i].chip_id = i;  // KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC
    TRY(sys::Ioctl(vm.get(), SYS_REQUEST(KVM_GET_IRQCHIP), &state.chips_[i]));
  }
  return state;
}

Result<PowerOnState::Cpu> PowerOnState::CaptureCpu(int fd, std::span<const uint32_t> msrs) {
  Cpu cpu{};
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_REGS), &cpu.regs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_SREGS), &cpu.sregs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_GET_FPU), &cpu.fpu));
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
  // The APIC base MSR is among the sregs, and what the LAPIC's registers mean depends on it.
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_SREGS), &cpu.sregs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_REGS), &cpu.regs));
  TRY(sys::Ioctl(fd, SYS_REQUEST(KVM_SET_FPU), &cpu.fpu));
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
