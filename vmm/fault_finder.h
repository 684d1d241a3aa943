// FaultFinder: what a vCPU does when KVM_RUN fails with EFAULT.
//
// KVM could not reach the memory behind a slot: a BAR stopped answering behind our back. The error
// names no address. So all BAR slots are taken away, the vCPU runs the same instruction again, and the
// access that then traps names it; its owner is told, and the other slots come back. They also come
// back after a while where nothing traps: an interrupt may have led the vCPU elsewhere, into HLT.
// Owned by one Vcpu, used by its thread alone, with no lock held.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "base/locks.h"
#include "memory/address_space.h"

namespace crossbar {

class FaultFinder {
 public:
  struct Limits {
    // Faults without a trapped access in between, and how long faults may go on, none of them more than
    // `quiet` after the one before, without a BAR being found. A miss proves nothing: the BAR may be
    // zapped between the fault and the search.
    unsigned faults = 16;
    std::chrono::milliseconds search{5000};
    std::chrono::milliseconds quiet{1000};
    // How long BARs go without their slots in one search.
    std::chrono::milliseconds demotion{1000};
  };

  // `space` is borrowed.
  explicit FaultFinder(AddressSpace& space) : FaultFinder(space, Limits()) {}
  FaultFinder(AddressSpace& space, Limits limits) : space_(space), limits_(limits) {}
  ~FaultFinder();

  // After EFAULT: true to run on. False where no BAR can be the cause, time and again: then it is
  // guest RAM, and the host's trouble.
  bool OnRunFault();

  // Between OnRunFault and the next trapped access, or until the search was given up.
  bool searching() const { return searching_.load(std::memory_order_relaxed); }

  // The vCPU trapped at `address`. Where a BAR is placed there, its owner is told. Either way the search
  // ends: what is still wrong fails again.
  void OnMmio(Gpa address);

 private:
  using Clock = std::chrono::steady_clock;

  void Start(AddressSpace::Demotion demotion) EXCLUDES(mutex_);
  void End() EXCLUDES(mutex_);
  void EndAt(Clock::time_point time) EXCLUDES(mutex_);

  AddressSpace& space_;
  const Limits limits_;
  unsigned faults_ = 0;         // since the last trapped access
  Clock::time_point began_;     // of these faults, since a BAR was found or it was quiet
  Clock::time_point last_;      // fault

  std::atomic<bool> searching_ = false;
  Mutex mutex_;  // not held while a demotion ends
  CondVar ended_;
  std::unique_ptr<AddressSpace::Demotion> demotion_ GUARDED_BY(mutex_);
  std::thread timer_;  // ends a search in which nothing traps
};

}  // namespace crossbar
