#include "memory/address_space.h"

#include <cerrno>
#include <ranges>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace crossbar {
namespace {

using Clock = std::chrono::steady_clock;

// Our own callers' business, unlike the ranges.
void CheckWellFormed(const AddressSpace::Placement& placement) {
  for (const AddressSpace::Piece& piece : placement.pieces) {
    CHECK(IsAligned(piece.backing.host.value(), kPageSize));
    CHECK(placement.whole.empty() || placement.whole.Contains(piece.range), "{}", piece.range);
    for (const AddressSpace::Piece& other : placement.pieces)
      CHECK(&piece == &other || !piece.range.Overlaps(other.range), "{}", piece.range);
  }
}

}  // namespace

AddressSpace::AddressSpace(MemslotTable& slots) : AddressSpace(slots, Options()) {}

AddressSpace::AddressSpace(MemslotTable& slots, Options options)
    : slots_(slots), options_(std::move(options)) {
  CHECK(options_.tries > 0);
}

AddressSpace::~AddressSpace() {
  MutexLock lock(update_);
  CHECK(records_.empty(), "{} mappings outlive the address space", records_.size());
  CHECK(domains_.empty(), "{} domains outlive the address space", domains_.size());
  CHECK(demotions_ == 0, "{} demotions outlive the address space", demotions_);
  CHECK(claim_holds_ == 0, "{} holds of claims outlive the address space", claim_holds_);
  CHECK(table_.size() == 0, "pins on {} pieces outlive the address space", table_.size());
}

AddressSpace::Change::Change(AddressSpace& space) NO_THREAD_SAFETY_ANALYSIS : space_(space) {
  space_.update_.Lock();
}

AddressSpace::Change::~Change() NO_THREAD_SAFETY_ANALYSIS {
  const std::vector<std::string> lines = std::exchange(space_.lines_, {});
  space_.update_.Unlock();
  for (const std::string& line : lines) LogWarning("{}", line);
}

void AddressSpace::Tell(RateLimit& limit, std::string line) {
  uint64_t dropped = 0;
  if (!limit.Allow(&dropped)) return;
  if (dropped != 0) line += fmt::format(" ({} like it not shown)", dropped);
  Tell(std::move(line));
}

// --- Map: slots, then DMA (G1)
// ---------------------------------------------------------------------

Result<AddressSpace::Mapping> AddressSpace::Map(Placement placement) {
  return Place(std::move(placement), /*may_claim=*/false);
}

Result<AddressSpace::Mapping> AddressSpace::MapOrClaim(Placement placement) {
  return Place(std::move(placement), /*may_claim=*/true);
}

Result<AddressSpace::Mapping> AddressSpace::Place(Placement placement, bool may_claim) {
  TRY(CheckRanges(placement));
  CheckWellFormed(placement);
  std::vector<GuestRange> extent = Extent(placement);
  const Change change(*this);
  const uint64_t id = next_id_++;
  const std::optional<GuestRange> earlier = FindEarlier(id, extent);
  if (earlier && !may_claim) {
    return std::unexpected(
        Error(EEXIST, fmt::format("{} overlaps {}", fmt::join(extent, ", "), *earlier)));
  }
  const Record& record =
      records_.emplace(id, Record{std::move(placement), std::move(extent),
                                  std::make_shared<std::atomic<bool>>(false)})
          .first->second;
  if (earlier) {
    claims_.insert(id);
  } else if (Result<> placed = PlaceRecord(record); !placed) {
    records_.erase(id);
    return std::unexpected(std::move(placed).error());
  }
  Mapping mapping;
  mapping.space_ = this;
  mapping.record_ = id;
  mapping.live_ = record.live;
  return mapping;
}

Result<> AddressSpace::CheckRanges(const Placement& placement) {
  for (const auto& [range, backing] : placement.pieces) {
    if (range.empty() || !IsAligned(range.start.value() | range.size, kPageSize))
      return std::unexpected(Error(EINVAL, fmt::format("guest range {} is no whole pages", range)));
    if (!GuestRange::Checked(range.start.value(), range.size)) {
      return std::unexpected(Error(EINVAL, fmt::format("guest range of {:#x} bytes at {} wraps",
                                                       range.size, range.start)));
    }
  }
  const GuestRange& whole = placement.whole;
  if (!whole.empty() && !GuestRange::Checked(whole.start.value(), whole.size))
    return std::unexpected(Error(EINVAL, fmt::format("{:#x} bytes at {} wrap", whole.size, whole.start)));
  return {};
}

std::vector<GuestRange> AddressSpace::Extent(const Placement& placement) {
  if (!placement.whole.empty()) return {placement.whole};
  std::vector<GuestRange> extent;
  for (const Piece& piece : placement.pieces) extent.push_back(piece.range);
  return extent;
}

std::optional<GuestRange> AddressSpace::FindEarlier(uint64_t id,
                                                    std::span<const GuestRange> extent) const {
  for (const GuestRange& range : extent) {
    if (const auto there = FindEarlier(id, range)) return there;
  }
  return std::nullopt;
}

std::optional<GuestRange> AddressSpace::FindEarlier(uint64_t id, const GuestRange& range) const {
  // What is live came first: with `id` in its way it would not be.
  const auto after = live_extents_.upper_bound(range.last());
  if (after != live_extents_.begin() && std::prev(after)->second.Overlaps(range))
    return std::prev(after)->second;
  for (const uint64_t claim : claims_) {
    if (claim >= id) break;
    for (const GuestRange& there : records_.at(claim).extent)
      if (there.Overlaps(range)) return there;
  }
  // Of a record that is gone, while somebody still has it pinned.
  return table_.FindOverlap(range);
}

// G1: by the time a device can reach the piece, vCPUs can. G3: all of it or nothing.
Result<> AddressSpace::PlaceRecord(const Record& record) {
  Placed placed{&record.placement};
  Result<> result = PlaceSlots(placed);
  if (result) result = MapDma(record.placement);
  if (!result) {
    TakeAway({&placed, 1});
    return result;
  }
  for (const GuestRange& range : record.extent)
    CHECK(live_extents_.emplace(range.start, range).second, "{}", range);
  record.live->store(true, std::memory_order_release);
  Changed();
  return {};
}

Result<> AddressSpace::PlaceSlots(Placed& placed) {
  for (const Piece& piece : placed.placement->pieces) {
    const Backing& backing = piece.backing;
    if (backing.host != Hva()) {
      const uint32_t number = TRY(slots_.Add(piece.range, backing.host, !backing.writable));
      piece_slots_.emplace(piece.range.start, Slot{number, piece.range, backing});
    }
    // Known before it is mapped: a server may DMA the moment it is told.
    table_.Insert(piece.range, backing);
    ++placed.pieces;
  }
  for (const IoEvent& event : placed.placement->events) {
    TRY(slots_.AddIoEvent(event));
    ++placed.events;
  }
  return {};
}

Result<> AddressSpace::MapDma(const Placement& placement) {
  for (const auto& [id, domain] : domains_) {
    // Each has its own time: one that is slow takes none from the next.
    const DmaDomain::Deadline deadline = Clock::now() + options_.map_deadline;
    for (const Piece& piece : placement.pieces) {
      if (!domain.serves) break;
      const Result<> mapped = MapPiece(id, piece, deadline);
      if (!mapped && domain.serves) return mapped;
    }
  }
  return {};
}

// G6: RAM or an error, a BAR or a cell that says why not.
Result<> AddressSpace::MapPiece(DomainId id, const Piece& piece, DmaDomain::Deadline deadline) {
  DmaDomain& domain = *domains_.at(id).domain;
  const auto& [range, backing] = piece;
  const bool bar = backing.kind == Backing::Kind::kBar;
  const std::string unguarded = bar ? domain.Unguarded(backing) : std::string();
  if (bar && !backing.peers_may_map) {
    peers_.SetRefused(id, range, backing, "p2p=off", unguarded);
    return {};
  }
  Result<std::string> how = domain.Map(range, backing, deadline);
  if (how) {
    peers_.SetMapped(id, range, backing, *how, unguarded);
    return {};
  }
  if (const DmaDomain::State state = domain.state(); state != DmaDomain::State::kServing) {
    // Nobody knows how far it came with this one, so it counts as mapped.
    peers_.SetMapped(id, range, backing, "");
    End(id, state);
    return std::unexpected(std::move(how).error());
  }
  if (!bar) {
    return std::unexpected(std::move(how).error().Within(
        fmt::format("{} cannot map guest RAM {}", domain.name(), range)));
  }
  TellRefusal(domains_.at(id), piece, how.error().message());
  peers_.SetRefused(id, range, backing, how.error().message(), unguarded);
  return {};
}

void AddressSpace::TellRefusal(Domain& domain, const Piece& piece, const std::string& reason) {
  const Backing& backing = piece.backing;
  const std::string target = backing.owner != nullptr ? backing.owner->bar_owner_name() : "a";
  std::string line = fmt::format(
      "{} cannot reach {} BAR {} at {}: {}; peer-to-peer DMA from it to there will fault",
      domain.domain->name(), target, backing.bar, piece.range, reason);
  if (domain.told.emplace(target, backing.bar).second) {
    Tell(std::move(line));
  } else {
    Tell(domain.again, std::move(line));
  }
}

// Before the zap that made room is acknowledged (decisions/006).
void AddressSpace::PlaceClaims() {
  if (claim_holds_ != 0) return;
  for (auto it = claims_.begin(); it != claims_.end();) {
    const Record& record = records_.at(*it);
    if (!FindEarlier(*it, record.extent)) {
      const Result<> placed = PlaceRecord(record);
      if (placed) {
        it = claims_.erase(it);
        continue;
      }
      Tell(trap_limit_, fmt::format("a BAR stays trapped: {}", placed.error().message()));
    }
    ++it;
  }
}

void AddressSpace::HoldClaims() {
  MutexLock lock(update_);
  ++claim_holds_;
}

void AddressSpace::ReleaseClaims() {
  const Change change(*this);
  CHECK(claim_holds_ > 0);
  --claim_holds_;
  PlaceClaims();
}

// --- Zap: DMA, then slots (G2)
// ---------------------------------------------------------------------

AddressSpace::Zapped AddressSpace::Zap(std::span<Mapping* const> mappings) {
  const Change change(*this);
  std::vector<Placed> placed;
  std::vector<uint64_t> ids;
  for (Mapping* const mapping : mappings) {
    if (mapping->space_ == nullptr) continue;
    CHECK(mapping->space_ == this);
    const Record& record = records_.at(mapping->record_);
    ids.push_back(mapping->record_);
    mapping->space_ = nullptr;
    if (claims_.erase(ids.back()) != 0) continue;
    record.live->store(false, std::memory_order_release);
    for (const GuestRange& range : record.extent) live_extents_.erase(range.start);
    placed.push_back(
        {&record.placement, record.placement.pieces.size(), record.placement.events.size()});
  }
  const Zapped zapped = TakeAway(placed);
  for (const uint64_t id : ids) records_.erase(id);
  if (!ids.empty()) PlaceClaims();
  return zapped;
}

// G2, the one place. Nobody starts anything new on the pieces; all unmaps start, and while they are
// under way what was forwarded before ends; all are awaited; then slots. One deadline for it all,
// and no unmap spends its share waiting for its turn.
AddressSpace::Zapped AddressSpace::TakeAway(std::span<const Placed> placed) {
  const DmaDomain::Deadline deadline = Clock::now() + options_.zap_deadline;
  std::vector<Gpa> starts;
  std::vector<Unmap> unmaps;
  for (const Placed& one : placed) {
    for (const Piece& piece : std::span(one.placement->pieces).first(one.pieces))
      starts.push_back(piece.range.start);
    for (const auto& [id, domain] : domains_) {
      for (const Piece& piece : std::span(one.placement->pieces).first(one.pieces)) {
        if (peers_.IsMapped(id, piece.range.start)) unmaps.push_back({id, piece.range});
      }
    }
  }
  table_.Close(starts);
  if (!placed.empty()) Changed();
  unmaps = StartUnmaps(std::move(unmaps));
  if (!table_.WaitUnpinned(starts, deadline)) Unsafe(Error::Of("forwarded DMA does not end"));
  FinishUnmaps(std::move(unmaps), deadline);
  Zapped zapped;
  zapped.pieces = starts.size();
  zapped.dma_out = Clock::now();
  for (const Placed& one : placed | std::views::reverse) RemoveSlots(one);
  zapped.slots_out = Clock::now();
  if (!placed.empty()) Changed();
  return zapped;
}

std::vector<AddressSpace::Unmap> AddressSpace::StartUnmaps(std::vector<Unmap> unmaps) {
  std::erase_if(unmaps, [this](const Unmap& unmap) REQUIRES(update_) {
    return !domains_.at(unmap.domain).serves;
  });
  for (Unmap& unmap : unmaps)
    unmap.ticket = domains_.at(unmap.domain).domain->StartUnmap(unmap.range);
  return unmaps;
}

// G5: an unmap must succeed with the size that was mapped; else it is tried again, and then the VM
// must stop rather than run on with a peer that can hit a dead BAR.
void AddressSpace::FinishUnmaps(std::vector<Unmap> unmaps, DmaDomain::Deadline deadline) {
  std::optional<Error> error;
  unmaps = AwaitUnmaps(std::move(unmaps), deadline, error);
  for (unsigned i = 1; i < options_.tries && !unmaps.empty(); ++i)
    unmaps = AwaitUnmaps(StartUnmaps(std::move(unmaps)), deadline, error);
  if (unmaps.empty()) return;
  Unsafe(*error);
  for (const Unmap& unmap : unmaps) peers_.Erase(unmap.domain, unmap.range.start);
}

// All of one round; those to be tried again are returned, and `error` is why.
std::vector<AddressSpace::Unmap> AddressSpace::AwaitUnmaps(std::vector<Unmap> unmaps,
                                                           DmaDomain::Deadline deadline,
                                                           std::optional<Error>& error) {
  std::erase_if(unmaps, [&](Unmap& unmap) REQUIRES(update_) {
    std::optional<Error> failed = AwaitOne(unmap, deadline);
    if (!failed) return true;
    error = std::move(failed);
    return false;
  });
  // A domain may have ended after one of its unmaps failed.
  std::erase_if(unmaps, [this](const Unmap& unmap) REQUIRES(update_) {
    return !domains_.at(unmap.domain).serves;
  });
  return unmaps;
}

// Nothing where it is settled.
std::optional<Error> AddressSpace::AwaitOne(Unmap& unmap, DmaDomain::Deadline deadline) {
  using State = DmaDomain::Unmapped::State;
  const Domain& domain = domains_.at(unmap.domain);
  DmaDomain::Unmapped result = domain.domain->AwaitUnmap(unmap.ticket, deadline);
  // Once it has ended, what its other tickets say means nothing any more.
  if (!domain.serves) return std::nullopt;
  switch (result.state) {
    case State::kEnded:
      End(unmap.domain, domain.domain->state());
      return std::nullopt;
    case State::kDone:
      unmap.done += result.bytes;
      if (unmap.done == unmap.range.size) {
        peers_.Erase(unmap.domain, unmap.range.start);
        return std::nullopt;
      }
      break;
    case State::kFailed:
      break;
  }
  Error error = result.error ? std::move(*result.error)
                             : Error::Of("{:#x} of {:#x} bytes", unmap.done, unmap.range.size);
  error = std::move(error).Within(
      fmt::format("{} does not unmap {}", domain.domain->name(), unmap.range));
  Tell(error.message());
  return error;
}

void AddressSpace::RemoveSlots(const Placed& placed) {
  const Placement& placement = *placed.placement;
  for (size_t i = placed.events; i-- > 0;) {
    MustSucceed([&] { return slots_.RemoveIoEvent(placement.events[i]); });
  }
  for (size_t i = placed.pieces; i-- > 0;) {
    const Gpa start = placement.pieces[i].range.start;
    if (const auto slot = piece_slots_.find(start); slot != piece_slots_.end()) {
      if (slot->second.trapped) --trapped_pieces_;
      RemoveSlot(slot->second);
      piece_slots_.erase(slot);
    }
    peers_.ErasePiece(start);
    table_.Erase(start);
  }
}

void AddressSpace::RemoveSlot(Slot& slot) {
  if (!slot.number) return;
  MustSucceed([&] { return slots_.Remove(*slot.number); });
  slot.number.reset();
}

Result<> AddressSpace::TryAgain(const std::function<Result<>()>& step) {
  Result<> done = step();
  for (unsigned i = 1; i < options_.tries && !done; ++i) {
    Tell(done.error().message() + "; trying again");
    done = step();
  }
  return done;
}

void AddressSpace::MustSucceed(const std::function<Result<>()>& removal) {
  if (const Result<> removed = TryAgain(removal); !removed) Unsafe(removed.error());
}

void AddressSpace::Unsafe(const Error& error) {
  CHECK(options_.on_unsafe, "{}", error.message());
  unsafe_.store(true, std::memory_order_release);
  options_.on_unsafe(error);
}

// --- Handles
// ---------------------------------------------------------------------------------------

AddressSpace::Mapping::Mapping(Mapping&& other) noexcept
    : space_(std::exchange(other.space_, nullptr)),
      record_(other.record_),
      live_(std::move(other.live_)) {}

AddressSpace::Mapping& AddressSpace::Mapping::operator=(Mapping&& other) noexcept {
  if (this == &other) return *this;
  Mapping* const self = this;
  if (space_ != nullptr) space_->Zap({&self, 1});
  space_ = std::exchange(other.space_, nullptr);
  record_ = other.record_;
  live_ = std::move(other.live_);
  return *this;
}

AddressSpace::Mapping::~Mapping() {
  Mapping* const self = this;
  if (space_ != nullptr) space_->Zap({&self, 1});
}

}  // namespace crossbar
