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
  const auto left = domains_.find(domain);
  left->second.pieces.clear();
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
  const Gpa start = cell.range.start;
  const bool ram = backing.kind == Backing::Kind::kRam;
  MutexLock lock(mutex_);
  Domain& owner = domains_.at(domain);
  cell.initiator = owner.name;
  owner.pieces.insert_or_assign(start,
                                Entry{ram, mapped, std::make_shared<const Cell>(std::move(cell))});
}

void PeerTable::Erase(DomainId domain, Gpa start) {
  MutexLock lock(mutex_);
  domains_.at(domain).pieces.erase(start);
}

void PeerTable::ErasePiece(Gpa start) {
  MutexLock lock(mutex_);
  for (auto& [id, domain] : domains_) domain.pieces.erase(start);
}

bool PeerTable::IsMapped(DomainId domain, Gpa start) const {
  MutexLock lock(mutex_);
  const auto& pieces = domains_.at(domain).pieces;
  const auto entry = pieces.find(start);
  return entry != pieces.end() && entry->second.mapped;
}

std::vector<GuestRange> PeerTable::Mapped(DomainId domain) const {
  MutexLock lock(mutex_);
  std::vector<GuestRange> ranges;
  for (const auto& [start, entry] : domains_.at(domain).pieces) {
    if (entry.mapped) ranges.push_back(entry.cell->range);
  }
  return ranges;
}

void PeerTable::Keep(DomainId domain, Gpa start, const std::string& why) {
  MutexLock lock(mutex_);
  Domain& owner = domains_.at(domain);
  const auto entry = owner.pieces.find(start);
  if (entry == owner.pieces.end()) return;
  Keep(owner, entry->second, why);
  owner.pieces.erase(entry);
}

void PeerTable::KeepAll(DomainId domain, const std::string& why) {
  MutexLock lock(mutex_);
  Domain& owner = domains_.at(domain);
  for (const auto& [start, entry] : owner.pieces) {
    if (entry.mapped) Keep(owner, entry, why);
  }
  owner.pieces.clear();
}

void PeerTable::Keep(Domain& domain, const Entry& entry, const std::string& why) {
  Cell cell = *entry.cell;
  cell.state = State::kUnrevoked;
  cell.detail = why;
  cell.since = std::chrono::steady_clock::now();
  const auto before = std::ranges::find_if(
      domain.kept, [&](const Kept& kept) { return SameTarget(*kept.cell, cell); });
  if (before == domain.kept.end()) {
    domain.kept.push_back({std::make_shared<const Cell>(std::move(cell)), false});
    return;
  }
  before->elsewhere |= before->cell->range != cell.range;
  if (before->elsewhere) cell.detail += ", here and elsewhere";
  cell.since = before->cell->since;
  before->cell = std::make_shared<const Cell>(std::move(cell));
}

void PeerTable::Revoked(DomainId domain, GuestRange range) {
  MutexLock lock(mutex_);
  std::erase_if(domains_.at(domain).kept, [&](const Kept& kept) {
    return kept.cell->range == range && !kept.elsewhere;
  });
}

void PeerTable::Forget(DomainId domain) {
  MutexLock lock(mutex_);
  domains_.at(domain).pieces.clear();
  domains_.at(domain).kept.clear();
}

P2pMatrix PeerTable::Snapshot(uint64_t generation) const {
  std::vector<std::vector<CellPtr>> domains;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, domain] : domains_) {
      std::vector<CellPtr>& cells = domains.emplace_back();
      for (const auto& [start, entry] : domain.pieces) {
        if (!entry.ram) cells.push_back(entry.cell);
      }
      for (const Kept& kept : domain.kept) cells.push_back(kept.cell);
    }
  }
  P2pMatrix matrix;
  matrix.generation = generation;
  matrix.made = std::chrono::steady_clock::now();
  for (std::vector<CellPtr>& cells : domains) {
    std::ranges::sort(cells, {}, [](const CellPtr& cell) {
      return std::tie(cell->range, cell->state, cell->target, cell->bar, cell->bar_offset);
    });
    for (const CellPtr& cell : cells) matrix.cells.push_back(*cell);
  }
  return matrix;
}

}  // namespace crossbar
