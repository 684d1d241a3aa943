// Random placements, domains and faults for the heart's property test: few addresses, so that
// things meet, at the places where arithmetic goes wrong: page 0, around 4 GiB, the top of the
// space.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "tests/heart/fakes.h"

namespace crossbar::heart {

class Generator {
 public:
  // What this session is like: draws from `rng` once.
  Generator(World& world, Rng& rng);

  AddressSpace::Placement NewPlacement(Rng& rng);
  // The same pieces elsewhere, as when a BAR is rewritten.
  AddressSpace::Placement Moved(const AddressSpace::Placement& placement, Rng& rng);
  DomainRules NewRules(Rng& rng) const;
  // `placing`: for an operation that maps more than it unmaps.
  std::vector<Fault> NewFaults(Rng& rng, bool placing) const;
  // An address at or near an edge of something that was placed, or anywhere.
  Gpa AnyGpa(Rng& rng) const;
  Hva AnyHva(Rng& rng) const;
  // Whether this session places the same host memory at several addresses.
  bool aliases() const { return alias_percent_ != 0; }

 private:
  GuestRange NewRange(Rng& rng) const;
  void TrapToo(AddressSpace::Placement& placement, Rng& rng) const;
  Backing NewBacking(GuestRange range, Rng& rng);
  IoEvent NewEvent(GuestRange range, Rng& rng) const;
  void Remember(GuestRange range, Hva host);

  std::array<std::unique_ptr<FakeOwner>, 4> owners_;
  std::vector<uint64_t> zones_;  // first bytes of stretches of pages
  uint64_t zone_pages_ = 16;
  unsigned alias_percent_ = 0;
  unsigned fault_percent_ = 0;
  unsigned p2p_off_percent_ = 0;
  uint64_t next_host_ = 0x7000'0000'0000;
  int next_fd_ = 1000;
  // The last ranges and host ranges used: a ring.
  std::array<GuestRange, 32> ranges_ = {};
  std::array<std::pair<Hva, uint64_t>, 32> hosts_ = {};
  size_t remembered_ = 0;
};

}  // namespace crossbar::heart
