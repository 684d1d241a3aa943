#include "boot/placement.h"

#include <algorithm>
#include <optional>
#include <ranges>
#include <utility>

#include "base/check.h"

namespace crossbar {
namespace {

constexpr std::string_view kMoreMemory = "give the guest more memory (--memory)";

// The part of `bank` within `bounds`, as inclusive ends so that 2^64 needs no special case.
std::optional<std::pair<uint64_t, uint64_t>> Common(GuestRange bank, GuestRange bounds) {
  const uint64_t first = std::max(bank.start, bounds.start).value();
  const uint64_t last = std::min(bank.last(), bounds.last()).value();
  if (bounds.empty() || first > last) return std::nullopt;
  return std::pair(first, last);
}

}  // namespace

Result<> Placement::Claim(GuestRange range, std::string_view what) {
  CHECK(!range.empty(), "{} is empty", what);
  const bool in_ram = std::ranges::any_of(
      ram_.banks(), [&](const GuestRam::Bank& bank) { return bank.range.Contains(range); });
  if (!in_ram) {
    return std::unexpected(
        Error::Of("{} needs {}, which is not all RAM", what, range).WithHint(kMoreMemory));
  }
  if (const Taken* taken = FirstOverlap(range)) {
    return std::unexpected(
        Error::Of("{} needs {}, but {} is at {}", what, range, taken->what, taken->range)
            .WithHint("link the kernel to load elsewhere, at 1 MiB or above"));
  }
  taken_.push_back({range, std::string(what)});
  return {};
}

Result<GuestRange> Placement::ClaimHighest(uint64_t size, uint64_t alignment, GuestRange bounds,
                                           std::string_view what) {
  CHECK(size != 0, "{} is empty", what);
  for (const GuestRam::Bank& bank : std::views::reverse(ram_.banks())) {
    auto room = Common(bank.range, bounds);
    // Each turn either ends or moves the end of the room below one more claim.
    while (room && room->second - room->first >= size - 1) {
      const uint64_t start = AlignDown(room->second - (size - 1), alignment);
      if (start < room->first) break;
      const GuestRange range{Gpa(start), size};
      const Taken* taken = FirstOverlap(range);
      if (taken == nullptr) {
        taken_.push_back({range, std::string(what)});
        return range;
      }
      if (taken->range.start.value() <= room->first) break;
      room->second = taken->range.start.value() - 1;
    }
  }
  return std::unexpected(NoPlace(size, bounds, what));
}

Result<GuestRange> Placement::ClaimLowest(uint64_t size, uint64_t alignment, GuestRange bounds,
                                          std::string_view what) {
  CHECK(size != 0, "{} is empty", what);
  for (const GuestRam::Bank& bank : ram_.banks()) {
    auto room = Common(bank.range, bounds);
    // As above, from the other end.
    while (room) {
      const uint64_t start = AlignUp(room->first, alignment);
      if (start < room->first || start > room->second || room->second - start < size - 1) break;
      const GuestRange range{Gpa(start), size};
      const Taken* taken = FirstOverlap(range);
      if (taken == nullptr) {
        taken_.push_back({range, std::string(what)});
        return range;
      }
      if (taken->range.last().value() >= room->second) break;
      room->first = taken->range.last().value() + 1;
    }
  }
  return std::unexpected(NoPlace(size, bounds, what));
}

const Placement::Taken* Placement::FirstOverlap(GuestRange range) const {
  const auto found =
      std::ranges::find_if(taken_, [&](const Taken& taken) { return taken.range.Overlaps(range); });
  return found == taken_.end() ? nullptr : &*found;
}

Error Placement::NoPlace(uint64_t size, GuestRange bounds, std::string_view what) const {
  return Error::Of("{} needs {:#x} bytes, and {} has no free RAM of that size (RAM is {} MiB)",
                   what, size, bounds, ram_.size() / kMiB)
      .WithHint(kMoreMemory);
}

}  // namespace crossbar
