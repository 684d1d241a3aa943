// AddressSpace's domains, the matrix and demotion: the changes that are no map and no zap.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "memory/address_space.h"

namespace crossbar {
namespace {

bool SameTarget(const P2pMatrix::Cell& a, const P2pMatrix::Cell& b) {
  return a.target == b.target && a.bar == b.bar && a.bar_offset == b.bar_offset &&
         a.range == b.range;
}

}  // namespace

Result<AddressSpace::DomainHandle> AddressSpace::AddDomain(DmaDomain& domain) {
  MutexLock lock(update_);
  const DomainId id = next_id_++;
  domains_.emplace(id, Domain{&domain, false});
  {
    MutexLock names(names_mutex_);
    names_.emplace(id, domain.name());
  }
  for (const PieceTable::Place& place : table_.Snapshot()) {
    Result<> mapped = MapPiece(id, {place.range, place.backing});
    if (mapped) continue;
    Forget(id);
    return std::unexpected(std::move(mapped).error());
  }
  Changed();
  return DomainHandle(this, id);
}

// Takes every piece out of the domain, and the domain out of the books.
void AddressSpace::Forget(DomainId id) {
  std::vector<Unmap> unmaps;
  if (!domains_.at(id).dead) {
    for (const GuestRange& range : table_.MappedIn(id)) unmaps.push_back({id, range});
  }
  UnmapDma(std::move(unmaps), ZapDeadline());
  Bury(id);
  domains_.erase(id);
  Changed();
}

void AddressSpace::Withdraw(DomainId id) {
  MutexLock lock(update_);
  Forget(id);
}

void AddressSpace::MarkDead(DomainId id) {
  MutexLock lock(update_);
  if (domains_.at(id).dead) return;
  Bury(id);
  Changed();
}

void AddressSpace::Bury(DomainId id) {
  domains_.at(id).dead = true;
  table_.EraseDomain(id);
  MutexLock names(names_mutex_);
  names_.erase(id);
  unrevoked_.erase(id);  // what a dead initiator kept it can no longer use
}

// Moves the cell from the piece, which leaves, to the list of what a domain kept.
void AddressSpace::NoteUnrevoked(const Unmap& unmap) {
  static RateLimit limit;
  LogGuest(limit, "{} may still reach {}: it does not answer and is not ours to stop",
           domains_.at(unmap.domain).domain->name(), unmap.range);
  std::vector<P2pMatrix::Cell> cells;
  MutexLock names(names_mutex_);
  table_.AppendCells(unmap.domain, names_.at(unmap.domain), cells);
  table_.EraseCell(unmap.range.start, unmap.domain);
  for (P2pMatrix::Cell& cell : cells) {
    if (cell.range != unmap.range) continue;
    // A guest can make this happen again and again at one place.
    std::erase_if(unrevoked_, [&](const auto& other) {
      return other.first == unmap.domain && SameTarget(other.second, cell);
    });
    cell.state = P2pMatrix::Cell::State::kUnrevoked;
    cell.detail = "the server does not answer and is not ours to stop";
    unrevoked_.emplace(unmap.domain, std::move(cell));
  }
}

P2pMatrix AddressSpace::Peers() const {
  P2pMatrix matrix;
  MutexLock names(names_mutex_);
  matrix.generation = generation();
  for (const auto& [id, name] : names_) {
    const auto begin = static_cast<ptrdiff_t>(matrix.cells.size());
    table_.AppendCells(id, name, matrix.cells);
    const auto [first, last] = unrevoked_.equal_range(id);
    for (auto it = first; it != last; ++it) matrix.cells.push_back(it->second);
    std::ranges::sort(matrix.cells.begin() + begin, matrix.cells.end(), {},
                      [](const P2pMatrix::Cell& cell) {
                        return std::pair(cell.range.start, cell.state);
                      });
  }
  return matrix;
}

AddressSpace::Demotion AddressSpace::DemoteBars() {
  MutexLock lock(update_);
  ++demotions_;
  size_t demoted = 0;
  for (auto& [start, slot] : piece_slots_) {
    if (slot.backing.kind != Backing::Kind::kBar) continue;
    RemoveSlot(slot);
    ++demoted;
  }
  Changed();
  return Demotion(this, demoted);
}

void AddressSpace::RestoreBars() {
  MutexLock lock(update_);
  CHECK(demotions_ > 0);
  if (--demotions_ != 0) return;
  for (auto& [start, slot] : piece_slots_) {
    if (slot.number) continue;
    const Result<uint32_t> number =
        slots_.Add(slot.range, slot.backing.host, !slot.backing.writable);
    if (number) {
      slot.number = *number;
    } else {
      LogWarning("a BAR stays trapped: {}", number.error().message());
    }
  }
  Changed();
}

AddressSpace::Demotion::~Demotion() {
  if (space_ != nullptr) space_->RestoreBars();
}

AddressSpace::DomainHandle::DomainHandle(DomainHandle&& other) noexcept
    : space_(std::exchange(other.space_, nullptr)), id_(other.id_) {}

AddressSpace::DomainHandle& AddressSpace::DomainHandle::operator=(DomainHandle&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  space_ = std::exchange(other.space_, nullptr);
  id_ = other.id_;
  return *this;
}

void AddressSpace::DomainHandle::Reset() {
  if (space_ != nullptr) std::exchange(space_, nullptr)->Withdraw(id_);
}

void AddressSpace::DomainHandle::MarkDead() {
  if (space_ != nullptr) space_->MarkDead(id_);
}

}  // namespace crossbar
