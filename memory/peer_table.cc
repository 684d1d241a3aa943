#include "memory/peer_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

namespace crossbar {
namespace {

using Cell = P2pMatrix::Cell;

Cell MakeCell(GuestRange range, const Backing& backing, Cell::State state,
              const std::string& detail, const std::string& unguarded) {
  Cell cell;
  cell.range = range;
  cell.state = state;
  cell.detail = detail;
  cell.since = std::chrono::steady_clock::now();
  if (backing.kind == Backing::Kind::kRam) {
    cell.target = "guest RAM";
    return cell;
  }
  if (backing.owner != nullptr) cell.target = backing.owner->bar_owner_name();
  cell.bar = backing.bar;
  cell.bar_offset = backing.bar_offset;
  if (!unguarded.empty()) {
    cell.detail = fmt::format("{}: {}; {}", P2pStateName(state), detail, unguarded);
    cell.state = Cell::State::kUnguarded;
  }
  return cell;
}

bool SameTarget(const Cell& a, const Cell& b) {
  return a.target == b.target && a.bar == b.bar && a.bar_offset == b.bar_offset;
}

}  // namespace

void PeerTable::AddDomain(DomainId domain, std::string name) {
  MutexLock lock(mutex_);
  domains_[domain].name = std::move(name);
}

void PeerTable::RemoveDomain(DomainId domain) {
  MutexLock lock(mutex_);
  EraseAll(domain);
  const auto left = domains_.find(domain);
  if (left->second.kept.empty()) domains_.erase(left);
}

void PeerTable::SetMapped(DomainId domain, GuestRange range, const Backing& backing,
                          const std::string& how, const std::string& unguarded) {
  Set(domain, backing, true, MakeCell(range, backing, Cell::State::kMapped, how, unguarded));
}

void PeerTable::SetRefused(DomainId domain, GuestRange range, const Backing& backing,
                           const std::string& reason, const std::string& unguarded) {
  Set(domain, backing, false, MakeCell(range, backing, Cell::State::kRefused, reason, unguarded));
}

void PeerTable::Set(DomainId domain, const Backing& backing, bool mapped, Cell cell) {
  MutexLock lock(mutex_);
  cell.initiator = domains_.at(domain).name;
  Piece& piece = pieces_[cell.range.start];
  piece.ram = backing.kind == Backing::Kind::kRam;
  piece.entries.insert_or_assign(domain,
                                 Entry{mapped, std::make_shared<const Cell>(std::move(cell))});
}

void PeerTable::Erase(DomainId domain, Gpa start) {
  MutexLock lock(mutex_);
  const auto piece = pieces_.find(start);
  if (piece == pieces_.end()) return;
  piece->second.entries.erase(domain);
  if (piece->second.entries.empty()) pieces_.erase(piece);
}

void PeerTable::ErasePiece(Gpa start) {
  MutexLock lock(mutex_);
  pieces_.erase(start);
}

void PeerTable::EraseAll(DomainId domain) {
  for (auto& [start, piece] : pieces_) piece.entries.erase(domain);
  std::erase_if(pieces_, [](const auto& piece) { return piece.second.entries.empty(); });
}

bool PeerTable::IsMapped(DomainId domain, Gpa start) const {
  MutexLock lock(mutex_);
  const auto piece = pieces_.find(start);
  if (piece == pieces_.end()) return false;
  const auto entry = piece->second.entries.find(domain);
  return entry != piece->second.entries.end() && entry->second.mapped;
}

std::vector<GuestRange> PeerTable::Mapped(DomainId domain) const {
  MutexLock lock(mutex_);
  std::vector<GuestRange> ranges;
  for (const auto& [start, piece] : pieces_) {
    const auto entry = piece.entries.find(domain);
    if (entry != piece.entries.end() && entry->second.mapped)
      ranges.push_back(entry->second.cell->range);
  }
  return ranges;
}

void PeerTable::Keep(DomainId domain) {
  MutexLock lock(mutex_);
  std::vector<CellPtr>& kept = domains_.at(domain).kept;
  for (const auto& [start, piece] : pieces_) {
    const auto entry = piece.entries.find(domain);
    if (entry == piece.entries.end() || !entry->second.mapped) continue;
    Cell cell = *entry->second.cell;
    cell.state = State::kUnrevoked;
    cell.since = std::chrono::steady_clock::now();
    const auto same = std::ranges::find_if(
        kept, [&](const CellPtr& before) { return SameTarget(*before, cell); });
    cell.detail = "the server is lost";
    if (same != kept.end()) {
      cell.detail += ", here and elsewhere";
      kept.erase(same);
    }
    kept.push_back(std::make_shared<const Cell>(std::move(cell)));
  }
  EraseAll(domain);
}

void PeerTable::Forget(DomainId domain) {
  MutexLock lock(mutex_);
  EraseAll(domain);
}

P2pMatrix PeerTable::Snapshot(uint64_t generation) const {
  std::map<DomainId, std::vector<CellPtr>> domains;
  {
    MutexLock lock(mutex_);
    for (const auto& [start, piece] : pieces_) {
      if (piece.ram) continue;
      for (const auto& [id, entry] : piece.entries) domains[id].push_back(entry.cell);
    }
    for (const auto& [id, domain] : domains_) {
      for (const CellPtr& cell : domain.kept) domains[id].push_back(cell);
    }
  }
  P2pMatrix matrix;
  matrix.generation = generation;
  matrix.made = std::chrono::steady_clock::now();
  for (auto& [id, cells] : domains) {
    std::ranges::sort(cells, {}, [](const CellPtr& cell) {
      return std::tie(cell->range, cell->state, cell->target, cell->bar, cell->bar_offset);
    });
    for (const CellPtr& cell : cells) matrix.cells.push_back(*cell);
  }
  return matrix;
}

}  // namespace crossbar
