#include "vmm/fault_finder.h"

#include "base/log.h"

namespace crossbar {
namespace {

// A BAR may be zapped between the fault and the search, so one miss proves nothing.
constexpr unsigned kMaxFruitless = 16;

}  // namespace

bool FaultFinder::OnRunFault() {
  if (++fruitless_ > kMaxFruitless) return false;
  if (searching()) return true;
  AddressSpace::Demotion demotion = space_.DemoteBars();
  static RateLimit limit;
  LogGuest(limit, "KVM cannot reach memory behind a slot; {} BAR pieces trap until it is found",
           demotion.demoted());
  if (demotion.demoted() != 0) demotion_.emplace(std::move(demotion));
  return true;
}

void FaultFinder::OnMmio(Gpa address) {
  const auto place = space_.Find(address);
  if (place && place->backing.kind == Backing::Kind::kBar && place->backing.owner != nullptr) {
    fruitless_ = 0;
    // It checks: an interrupt handler may have run first and touched a BAR that is well.
    place->backing.owner->OnVanished(address);
  }
  demotion_.reset();
}

}  // namespace crossbar
