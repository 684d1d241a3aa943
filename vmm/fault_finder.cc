#include "vmm/fault_finder.h"

#include <utility>

#include "base/log.h"
#include "base/thread.h"

namespace crossbar {

FaultFinder::~FaultFinder() {
  End();
  if (timer_.joinable()) timer_.join();
}

bool FaultFinder::OnRunFault() {
  const Clock::time_point now = Clock::now();
  if (now - last_ > limits_.quiet) began_ = now;
  last_ = now;
  if (++faults_ > limits_.faults || now - began_ > limits_.search) return false;
  if (searching()) return true;
  AddressSpace::Demotion demotion = space_.DemoteBars();
  static RateLimit limit;
  LogGuest(limit, "KVM cannot reach memory behind a slot; {} BAR pieces trap until it is found",
           demotion.demoted());
  if (demotion.demoted() != 0) Start(std::move(demotion));
  return true;
}

void FaultFinder::OnMmio(Gpa address) {
  // It ran on: what failed before was another instruction.
  faults_ = 0;
  const auto place = space_.Find(address);
  if (place && place->backing.kind == Backing::Kind::kBar && place->backing.owner != nullptr) {
    began_ = Clock::now();
    // It checks: an interrupt handler may have run first and touched a BAR that is well.
    place->backing.owner->OnVanished(address);
  }
  End();
}

void FaultFinder::Start(AddressSpace::Demotion demotion) {
  // The last search's is done, or it would take this one for its own.
  if (timer_.joinable()) timer_.join();
  {
    MutexLock lock(mutex_);
    demotion_ = std::make_unique<AddressSpace::Demotion>(std::move(demotion));
  }
  searching_ = true;
  auto timer = StartThread("fault finder", [this, time = Clock::now() + limits_.demotion] { EndAt(time); });
  if (timer) timer_ = *std::move(timer);  // the host may have none: then the next access that traps ends it
}

void FaultFinder::EndAt(Clock::time_point time) {
  {
    MutexLock lock(mutex_);
    while (demotion_ != nullptr && Clock::now() < time) ended_.WaitUntil(mutex_, time);
  }
  End();
}

void FaultFinder::End() {
  std::unique_ptr<AddressSpace::Demotion> over;
  MutexLock lock(mutex_);
  over = std::exchange(demotion_, nullptr);
  searching_ = false;
  ended_.NotifyAll();
}

}  // namespace crossbar
