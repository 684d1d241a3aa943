// FaultFinder: what a vCPU does when KVM_RUN fails with EFAULT.
//
// KVM could not reach the memory behind a slot: a BAR stopped answering behind our back. The error
// names no address. So all BAR slots are taken away, the vCPU runs the same instruction again, and the
// access that then traps names it; its owner is told, and the other slots come back.
// Owned by one Vcpu, used by its thread alone, with no lock held.
#pragma once

#include <optional>

#include "memory/address_space.h"

namespace crossbar {

class FaultFinder {
 public:
  // `space` is borrowed.
  explicit FaultFinder(AddressSpace& space) : space_(space) {}

  // After EFAULT: true to run on. False where no BAR can be the cause, time and again: then it is
  // guest RAM, and the host's trouble.
  bool OnRunFault();

  // Between OnRunFault and the next trapped access.
  bool searching() const { return demotion_.has_value(); }

  // The vCPU trapped at `address`. Where a BAR is placed there, its owner is told. Either way the search
  // ends: what is still wrong fails again.
  void OnMmio(Gpa address);

 private:
  AddressSpace& space_;
  std::optional<AddressSpace::Demotion> demotion_;
  unsigned fruitless_ = 0;  // faults since a BAR was last found
};

}  // namespace crossbar
