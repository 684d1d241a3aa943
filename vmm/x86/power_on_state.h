// PowerOnState: what vCPUs and the interrupt controllers hold before they ever ran.
//
// A guest reboot puts it back. It is not a table of reset values, which would have to know every MSR
// of every CPU: it is read out of a VM that was just made, with the same vCPUs and CPUID, and thrown
// away. Made at the first reboot only, on the main thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/kvm_uapi.h"
#include "base/result.h"
#include "vmm/kvm.h"
#include "vmm/x86/cpuid.h"

namespace crossbar {

class PowerOnState {
 public:
  struct Msr {
    uint32_t index;
    uint64_t value;
  };

  // `ids` are the local APIC ids, in the order of the vCPUs.
  static Result<PowerOnState> Capture(const Kvm& kvm, const GuestCpuid& cpuid,
                                      std::span<const uint32_t> ids);

  // Both need every vCPU stopped. `index` is the vCPU's place in `ids`.
  Result<> RestoreVcpu(size_t index, int vcpu_fd) const;
  Result<> RestoreInterruptControllers(int vm_fd) const;

 private:
  struct Cpu {
    kvm_regs regs;
    kvm_sregs sregs;
    std::vector<std::byte> xsave;  // x87, SSE, AVX and what else the CPU has
    kvm_debugregs debugregs;
    kvm_xcrs xcrs;
    kvm_lapic_state lapic;
    kvm_vcpu_events events;
    kvm_mp_state mp_state;
    std::vector<Msr> msrs;
  };
  static Result<Cpu> CaptureCpu(int vm_fd, int vcpu_fd, std::span<const uint32_t> msr_indices);

  std::vector<Cpu> cpus_;
  std::array<kvm_irqchip, 3> chips_{};  // both PICs, IOAPIC
};

}  // namespace crossbar
