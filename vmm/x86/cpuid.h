// GuestCpuid: what CPUID tells the guest. KVM's supported leaves, with the topology and the feature
// bits that KVM leaves to user space. A value made once per VM; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/kvm_uapi.h"
#include "base/result.h"

namespace crossbar {

class GuestCpuid {
 public:
  // Asks KVM_GET_SUPPORTED_CPUID; `tsc_deadline` as KVM_CAP_TSC_DEADLINE_TIMER says.
  static Result<GuestCpuid> FromKvm(int kvm_fd, bool tsc_deadline);
  GuestCpuid(std::vector<kvm_cpuid_entry2> supported, bool tsc_deadline)
      : supported_(std::move(supported)), tsc_deadline_(tsc_deadline) {}

  // MAXPHYADDR: leaf 0x80000008, EAX bits 7:0 (Intel SDM vol. 3A, 4.1.4).
  unsigned physical_address_bits() const;

  // The entries of the vCPU with local APIC id `apic_id`, one of `cpus` cores of one package.
  std::vector<kvm_cpuid_entry2> ForCpu(uint32_t apic_id, unsigned cpus) const;

 private:
  std::vector<kvm_cpuid_entry2> supported_;
  bool tsc_deadline_;
};

// KVM_SET_CPUID2.
Result<> SetCpuid(int vcpu_fd, std::span<const kvm_cpuid_entry2> entries);

}  // namespace crossbar
