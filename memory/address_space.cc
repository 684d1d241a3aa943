#include "memory/address_space.h"

#include <algorithm>
#include <cerrno>
#include <ranges>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace crossbar {
namespace {

using CellState = P2pMatrix::Cell::State;

std::vector<Gpa> Starts(std::span<const AddressSpace::Piece> pieces) {
  std::vector<Gpa> starts;
  for (const AddressSpace::Piece& piece : pieces) starts.push_back(piece.range.start);
  return starts;
}

void CheckWellFormed(const AddressSpace::Placement& placement) {
  for (const AddressSpace::Piece& piece : placement.pieces) {
    CHECK(!piece.range.empty() && IsAligned(piece.range.start.value() | piece.range.size, kPageSize),
          "{}", piece.range);
    CHECK(piece.range.start <= piece.range.last(), "{} wraps", piece.range);
    CHECK(IsAligned(piece.backing.host.value(), kPageSize));
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
}

// --- Map: slots, then DMA (G1) ---------------------------------------------------------------------

Result<AddressSpace::Mapping> AddressSpace::Map(Placement placement) {
  return Place(std::move(placement), /*may_claim=*/false);
}

Result<AddressSpace::Mapping> AddressSpace::MapOrClaim(Placement placement) {
  return Place(std::move(placement), /*may_claim=*/true);
}

Result<AddressSpace::Mapping> AddressSpace::Place(Placement placement, bool may_claim) {
  CheckWellFormed(placement);
  MutexLock lock(update_);
  const Result<> free = CheckFree(placement);
  if (!free && !may_claim) return std::unexpected(free.error());
  const uint64_t id = next_id_++;
  const Record& record =
      records_.emplace(id, Record{std::move(placement), std::make_shared<std::atomic<bool>>(false)})
          .first->second;
  if (!free) {
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

Result<> AddressSpace::CheckFree(const Placement& placement) const {
  for (const Piece& piece : placement.pieces) {
    if (const auto there = table_.FindOverlap(piece.range))
      return std::unexpected(
          Error(EEXIST, fmt::format("guest range {} overlaps {}", piece.range, *there)));
  }
  return {};
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
    for (const Piece& piece : placement.pieces) {
      if (domain.dead) break;
      const Result<> mapped = MapPiece(id, piece);
      if (!mapped && !domains_.at(id).dead) return mapped;
    }
  }
  return {};
}

// G6: RAM or an error, a BAR or a cell that says why not.
Result<> AddressSpace::MapPiece(DomainId id, const Piece& piece) {
  Domain& domain = domains_.at(id);
  const auto now = std::chrono::steady_clock::now();
  const bool bar = piece.backing.kind == Backing::Kind::kBar;
  if (bar && !piece.backing.peers_may_map) {
    table_.SetCell(piece.range.start, id, {CellState::kRefused, "p2p=off", now});
    return {};
  }
  Result<std::string> how = domain.domain->Map(piece.range, piece.backing);
  if (how) {
    table_.SetCell(piece.range.start, id, {CellState::kMapped, *std::move(how), now});
    return {};
  }
  const std::string reason = how.error().message();
  if (!domain.domain->alive()) {
    Bury(id);
    return std::unexpected(std::move(how).error());
  }
  if (!bar) {
    return std::unexpected(std::move(how).error().Within(
        fmt::format("{} cannot map guest RAM {}", domain.domain->name(), piece.range)));
  }
  static RateLimit limit;  // a guest may place its BARs as often as it likes
  LogGuest(limit, "{} cannot reach {} BAR {} at {}: {}; peer-to-peer DMA from it to there will fault",
           domain.domain->name(),
           piece.backing.owner != nullptr ? piece.backing.owner->bar_owner_name() : "a",
           piece.backing.bar, piece.range, reason);
  table_.SetCell(piece.range.start, id, {CellState::kRefused, reason, now});
  return {};
}

void AddressSpace::PlaceClaims() {
  for (auto it = claims_.begin(); it != claims_.end();) {
    const Record& record = records_.at(*it);
    if (CheckFree(record.placement)) {
      const Result<> placed = PlaceRecord(record);
      if (placed) {
        it = claims_.erase(it);
        continue;
      }
      static RateLimit limit;
      LogGuest(limit, "a BAR stays trapped: {}", placed.error().message());
    }
    ++it;
  }
}

// --- Zap: DMA, then slots (G2) ---------------------------------------------------------------------

AddressSpace::ZapTimes AddressSpace::Zap(std::span<Mapping* const> mappings) {
  MutexLock lock(update_);
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
    placed.push_back(
        {&record.placement, record.placement.pieces.size(), record.placement.events.size()});
  }
  const ZapTimes times = TakeAway(placed);
  for (const uint64_t id : ids) records_.erase(id);
  if (!placed.empty()) PlaceClaims();
  return times;
}

// G2, the one place. Step 0: nobody starts anything new on the pieces, and what is under way ends.
AddressSpace::ZapTimes AddressSpace::TakeAway(std::span<const Placed> placed) {
  const DmaDomain::Deadline deadline = ZapDeadline();
  std::vector<Unmap> unmaps;
  for (const Placed& one : placed) {
    const std::span pieces = std::span(one.placement->pieces).first(one.pieces);
    const std::vector<Gpa> starts = Starts(pieces);
    table_.Close(starts);
    for (const auto& [id, domain] : domains_) {
      for (const Piece& piece : pieces) {
        if (table_.IsMapped(piece.range.start, id)) unmaps.push_back({id, piece.range});
      }
    }
  }
  for (const Placed& one : placed) {
    if (!table_.WaitUnpinned(Starts(std::span(one.placement->pieces).first(one.pieces)), deadline))
      Unsafe(Error::Of("forwarded DMA does not end"));
  }
  ZapTimes times;
  UnmapDma(std::move(unmaps), deadline);
  times.dma_out = std::chrono::steady_clock::now();
  for (const Placed& one : placed | std::views::reverse) RemoveSlots(one);
  times.slots_out = std::chrono::steady_clock::now();
  if (!placed.empty()) Changed();
  return times;
}

// G5: an unmap must succeed with the size that was mapped; else it is tried again, and then the VM
// must stop rather than run on with a peer that can hit a dead BAR.
void AddressSpace::UnmapDma(std::vector<Unmap> unmaps, DmaDomain::Deadline deadline) {
  std::optional<Error> error;
  for (unsigned i = 0; i < options_.tries && !unmaps.empty(); ++i) {
    error = TryUnmap(unmaps, deadline);
  }
  if (unmaps.empty()) return;
  Unsafe(*error);
  for (const Unmap& unmap : unmaps) table_.EraseCell(unmap.range.start, unmap.domain);
}

// One round over all of `unmaps`: all are started, then all awaited. Those to be tried again stay. A
// domain may turn out to be dead half-way: what else its tickets say then means nothing any more.
std::optional<Error> AddressSpace::TryUnmap(std::vector<Unmap>& unmaps,
                                            DmaDomain::Deadline deadline) {
  using State = DmaDomain::Unmapped::State;
  std::vector<std::pair<Unmap, DmaDomain::UnmapTicket>> started;
  for (const Unmap& unmap : unmaps) {
    const Domain& domain = domains_.at(unmap.domain);
    if (!domain.dead) started.emplace_back(unmap, domain.domain->StartUnmap(unmap.range));
  }
  unmaps.clear();
  std::optional<Error> error;
  for (const auto& [unmap, ticket] : started) {
    const Domain& domain = domains_.at(unmap.domain);
    DmaDomain::Unmapped result = domain.domain->AwaitUnmap(ticket, deadline);
    if (domain.dead) continue;
    if (result.state == State::kDone && result.bytes == unmap.range.size) {
      table_.EraseCell(unmap.range.start, unmap.domain);
    } else if (result.state == State::kDead) {
      Bury(unmap.domain);
    } else if (result.state == State::kUnrevoked) {
      NoteUnrevoked(unmap);
    } else {
      error = result.error
                  ? std::move(*result.error)
                  : Error::Of("{:#x} of {:#x} bytes", result.bytes, unmap.range.size);
      error = std::move(*error).Within(
          fmt::format("{} does not unmap {}", domain.domain->name(), unmap.range));
      LogWarning("{}", error->message());
      unmaps.push_back(unmap);
    }
  }
  std::erase_if(unmaps, [this](const Unmap& unmap) REQUIRES(update_) {
    return domains_.at(unmap.domain).dead;
  });
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
      RemoveSlot(slot->second);
      piece_slots_.erase(slot);
    }
    table_.Erase(start);
  }
}

void AddressSpace::RemoveSlot(Slot& slot) {
  if (!slot.number) return;
  MustSucceed([&] { return slots_.Remove(*slot.number); });
  slot.number.reset();
}

void AddressSpace::MustSucceed(const std::function<Result<>()>& removal) {
  Result<> removed = removal();
  for (unsigned i = 1; i < options_.tries && !removed; ++i) {
    LogWarning("{}; trying again", removed.error().message());
    removed = removal();
  }
  if (!removed) Unsafe(removed.error());
}

void AddressSpace::Unsafe(const Error& error) {
  CHECK(options_.on_unsafe, "{}", error.message());
  options_.on_unsafe(error);
}

DmaDomain::Deadline AddressSpace::ZapDeadline() const {
  return std::chrono::steady_clock::now() + options_.zap_deadline;
}

// --- Handles ---------------------------------------------------------------------------------------

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
