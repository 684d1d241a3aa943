#include "tests/heart/generate.h"

#include <algorithm>

namespace crossbar::heart {
namespace {

// The first byte of the last `pages` pages of the space.
constexpr uint64_t Top(uint64_t pages) {
  return ~0ull - pages * kPageSize + 1;
}

}  // namespace

Generator::Generator(World& world, Rng& rng) {
  for (size_t i = 0; i < owners_.size(); ++i) {
    owners_[i] = std::make_unique<FakeOwner>(world, static_cast<int>(i));
  }
  zone_pages_ = rng.Between(4, 40);
  const std::array<uint64_t, 5> all = {0, k4GiB - zone_pages_ / 2 * kPageSize, Top(zone_pages_),
                                       1ull << 40, 0xfe00'0000};
  const size_t count = rng.Between(1, all.size());
  while (zones_.size() < count) zones_.push_back(all[rng.Below(all.size())]);
  alias_percent_ = rng.OneIn(3) ? 20 : 0;
  fault_percent_ = std::array<unsigned, 4>{0, 5, 20, 50}[rng.Below(4)];
  p2p_off_percent_ = rng.OneIn(2) ? 20 : 0;
}

void Generator::Remember(GuestRange range, Hva host) {
  ranges_[remembered_ % ranges_.size()] = range;
  hosts_[remembered_ % hosts_.size()] = {host, range.size};
  ++remembered_;
}

GuestRange Generator::NewRange(Rng& rng) const {
  if (rng.OneIn(200)) {
    // Vast: to the top of the space or near it.
    const uint64_t start = rng.OneIn(2) ? 1ull << 62 : 1ull << 41;
    const uint64_t end = rng.OneIn(2) ? 0 : Top(zone_pages_);
    return {Gpa(start), end - start};
  }
  const uint64_t zone = zones_[rng.Below(zones_.size())];
  const uint64_t first = rng.Below(zone_pages_);
  const uint64_t most = std::min<uint64_t>(zone_pages_ - first, rng.OneIn(8) ? zone_pages_ : 4);
  return {Gpa(zone + first * kPageSize), rng.Between(1, most) * kPageSize};
}

Backing Generator::NewBacking(GuestRange range, Rng& rng) {
  Backing backing;
  backing.kind = rng.Percent(30) ? Backing::Kind::kRam : Backing::Kind::kBar;
  backing.writable = !rng.OneIn(8);
  if (!rng.OneIn(6) && range.size <= kGiB) {
    backing.host = Hva(next_host_);
    // Sometimes with nothing between it and the next.
    next_host_ += range.size + rng.Below(3) * kPageSize;
    const auto& [host, size] = hosts_[rng.Below(hosts_.size())];
    if (rng.Percent(alias_percent_) && host.value() != 0) {
      backing.host = host + rng.Below(size / kPageSize) * kPageSize;
    }
  }
  if (rng.OneIn(2)) backing.file = Backing::Handle{next_fd_++, rng.Below(64) * kPageSize};
  if (backing.kind == Backing::Kind::kRam) return backing;
  if (rng.OneIn(2)) backing.dma_buf = Backing::Handle{next_fd_++, rng.Below(64) * kPageSize};
  backing.owner = owners_[rng.Below(owners_.size())].get();
  backing.bar = static_cast<uint8_t>(rng.Below(6));
  backing.bar_offset = rng.Below(16) * kPageSize;
  if (rng.OneIn(2)) backing.bar_physical = 0x38'0000'0000 + rng.Below(1024) * kPageSize;
  backing.peers_may_map = !rng.Percent(p2p_off_percent_);
  return backing;
}

IoEvent Generator::NewEvent(GuestRange range, Rng& rng) const {
  IoEvent event;
  event.address = rng.OneIn(4) ? AnyGpa(rng) : range.start + rng.Below(4) * 4;
  event.size = std::array<uint32_t, 5>{0, 1, 2, 4, 8}[rng.Below(5)];
  if (event.size != 0 && rng.OneIn(2)) event.datamatch = rng.Below(3);
  event.eventfd = static_cast<int>(rng.Between(500, 600));
  return event;
}

AddressSpace::Placement Generator::NewPlacement(Rng& rng) {
  AddressSpace::Placement placement;
  const uint64_t pieces = rng.OneIn(3) ? rng.Between(2, 4) : 1;
  for (uint64_t i = 0; i < pieces; ++i) {
    GuestRange range = NewRange(rng);
    const auto overlaps = [&](const auto& other) { return other.range.Overlaps(range); };
    // Pieces of one placement never overlap: it is one BAR, or RAM.
    for (int tries = 0; tries < 4 && std::ranges::any_of(placement.pieces, overlaps); ++tries) {
      range = NewRange(rng);
    }
    if (std::ranges::any_of(placement.pieces, overlaps)) continue;
    placement.pieces.push_back({range, NewBacking(range, rng)});
    Remember(range, placement.pieces.back().backing.host);
  }
  if (rng.OneIn(5)) {
    const uint64_t events = rng.Between(1, 3);
    for (uint64_t i = 0; i < events; ++i) {
      placement.events.push_back(NewEvent(placement.pieces[0].range, rng));
    }
  }
  if (rng.OneIn(3)) TrapToo(placement, rng);
  return placement;
}

// Makes a BAR of it: what is around and between its pieces is trapped; or all of it, by the byte.
void Generator::TrapToo(AddressSpace::Placement& placement, Rng& rng) const {
  constexpr uint64_t kLargest = 16 * kPageSize;
  uint64_t start = UINT64_MAX;
  uint64_t last = 0;
  for (const AddressSpace::Piece& piece : placement.pieces) {
    start = std::min(start, piece.range.start.value());
    last = std::max(last, piece.range.last().value());
  }
  if (placement.pieces.size() == 1 && rng.OneIn(3)) {
    start += rng.OneIn(2) ? 0 : rng.Below(last - start + 1);
    placement.pieces.clear();
    placement.whole = {Gpa(start), rng.Between(1, last - start + 1)};
    return;
  }
  if (last - start >= kLargest) return;  // pieces in different zones
  start -= std::min(start, rng.Below(3) * kPageSize);
  if (const auto whole = GuestRange::Checked(start, last - start + 1 + rng.Below(3) * kPageSize))
    placement.whole = *whole;
}

AddressSpace::Placement Generator::Moved(const AddressSpace::Placement& placement, Rng& rng) {
  AddressSpace::Placement moved = placement;
  const uint64_t from = zones_[rng.Below(zones_.size())];
  const uint64_t by = (rng.OneIn(2) ? 0 : from) + rng.Below(zone_pages_) * kPageSize;
  for (AddressSpace::Piece& piece : moved.pieces) {
    const uint64_t start = piece.range.start.value() + by;
    // As far as it goes before the top of the space.
    if (!GuestRange::Checked(start, piece.range.size)) return placement;
    piece.range.start = Gpa(start);
  }
  if (!moved.whole.empty()) {
    const uint64_t start = moved.whole.start.value() + by;
    if (!GuestRange::Checked(start, moved.whole.size)) return placement;
    moved.whole.start = Gpa(start);
  }
  for (const AddressSpace::Piece& piece : moved.pieces) Remember(piece.range, piece.backing.host);
  return moved;
}

DomainRules Generator::NewRules(Rng& rng) const {
  DomainRules rules;
  switch (rng.Below(4)) {
    case 0:
      rules.needs_host = true;
      break;
    case 1:
      rules.needs_dma_buf = true;
      break;
    case 2:
      rules.needs_file = true;
      break;
    default:
      break;  // It takes all, and forwards what it has no handle for.
  }
  if (rng.OneIn(4)) rules.bar_limit = k4GiB - 1;
  if (rng.OneIn(4)) rules.max_bars = rng.Between(0, 6);
  rules.foreign = rng.OneIn(3);
  return rules;
}

std::vector<Fault> Generator::NewFaults(Rng& rng, bool placing) const {
  using Kind = Event::Kind;
  using Outcome = Event::Outcome;
  std::vector<Fault> faults;
  if (!rng.Percent(fault_percent_)) return faults;
  const uint64_t count = rng.OneIn(3) ? rng.Between(2, 4) : 1;
  for (uint64_t i = 0; i < count; ++i) {
    Fault fault;
    // The first half are of calls that place.
    switch (rng.Below(placing && rng.OneIn(2) ? 5 : 10)) {
      case 0:
        fault.kind = Kind::kSlotAdd;
        break;
      case 1:
        fault.kind = Kind::kIoAdd;
        break;
      case 2:
      case 3:
        fault.kind = Kind::kMap;
        break;
      case 4:
        fault.kind = Kind::kMap;
        fault.outcome = rng.OneIn(2) ? Outcome::kGone : Outcome::kHung;
        break;
      case 5:
        fault.kind = Kind::kSlotRemove;
        break;
      case 6:
        fault.kind = Kind::kIoRemove;
        break;
      default:
        fault.kind = Kind::kAwaitUnmap;
        fault.outcome = std::array<Outcome, 5>{Outcome::kFailed, Outcome::kShort, Outcome::kHung,
                                               Outcome::kGone, Outcome::kLost}[rng.Below(5)];
        break;
    }
    fault.nth = static_cast<unsigned>(rng.OneIn(3) ? rng.Below(12) : rng.Below(3));
    fault.times = static_cast<unsigned>(rng.Between(1, 5));
    faults.push_back(fault);
  }
  return faults;
}

Gpa Generator::AnyGpa(Rng& rng) const {
  if (rng.OneIn(16)) return Gpa(rng.Next());
  if (rng.OneIn(4)) {
    const uint64_t zone = zones_[rng.Below(zones_.size())];
    return Gpa(zone + rng.Below(zone_pages_ * kPageSize + 1));
  }
  const GuestRange& range = ranges_[rng.Below(ranges_.size())];
  switch (rng.Below(5)) {
    case 0:
      return range.start;
    case 1:
      return range.empty() ? Gpa(0) : range.last();
    case 2:
      return range.end();
    case 3:
      return Gpa(range.start.value() - 1);
    default:
      return range.start + rng.Below(range.size | 1);
  }
}

Hva Generator::AnyHva(Rng& rng) const {
  if (rng.OneIn(16)) return Hva(rng.Next());
  const auto& [host, size] = hosts_[rng.Below(hosts_.size())];
  if (host.value() == 0) return Hva(rng.Below(2));
  switch (rng.Below(5)) {
    case 0:
      return host;
    case 1:
      return host + (size - 1);
    case 2:
      return host + size;
    case 3:
      return Hva(host.value() - 1);
    default:
      return host + rng.Below(size);
  }
}

}  // namespace crossbar::heart
