// Placement: which guest RAM is taken while one kernel is loaded, and by what.
//
// A loader writes only to ranges it claimed here, and a claim is within one RAM bank and overlaps
// no other: so nothing that is loaded can hit anything else. Made for one LoadGuest; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "memory/address.h"
#include "memory/guest_ram.h"

namespace crossbar {

class Placement {
 public:
  explicit Placement(const GuestRam& ram) : ram_(ram) {}

  // Takes exactly `range`, which is not empty. Errors: not within RAM, taken (and by what).
  Result<> Claim(GuestRange range, std::string_view what);

  // Takes the highest or lowest free place of `size` bytes, not 0, within `bounds`, at a multiple
  // of `alignment`, a power of two. Error: there is none.
  Result<GuestRange> ClaimHighest(uint64_t size, uint64_t alignment, GuestRange bounds,
                                  std::string_view what);
  Result<GuestRange> ClaimLowest(uint64_t size, uint64_t alignment, GuestRange bounds,
                                 std::string_view what);

 private:
  struct Taken {
    GuestRange range;
    std::string what;
  };

  const Taken* FirstOverlap(GuestRange range) const;
  Error NoPlace(uint64_t size, GuestRange bounds, std::string_view what) const;

  const GuestRam& ram_;
  std::vector<Taken> taken_;
};

}  // namespace crossbar
