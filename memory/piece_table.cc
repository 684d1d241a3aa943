#include "memory/piece_table.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace crossbar {

PieceTable::Pin::~Pin() {
  if (table_ == nullptr) return;
  MutexLock lock(table_->mutex_);
  Piece& piece = table_->At(place_.range.start);
  CHECK(piece.pins > 0);
  if (--piece.pins != 0) return;
  if (piece.closing) table_->unpinned_.NotifyAll();
  if (piece.gone) table_->EraseNow(place_.range.start);
}

PieceTable::Pieces::const_iterator PieceTable::FindPiece(Gpa address) const {
  auto it = pieces_.upper_bound(address);
  if (it == pieces_.begin()) return pieces_.end();
  --it;
  return it->second.range.Contains(address) ? it : pieces_.end();
}

PieceTable::Piece& PieceTable::At(Gpa start) {
  const auto it = pieces_.find(start);
  CHECK(it != pieces_.end(), "no piece at {}", start);
  return it->second;
}

std::optional<PieceTable::Place> PieceTable::Find(Gpa address) const {
  MutexLock lock(mutex_);
  const auto it = FindPiece(address);
  if (it == pieces_.end() || it->second.closing) return std::nullopt;
  const Piece& piece = it->second;
  return Place{piece.range, piece.backing.At(address - piece.range.start)};
}

std::optional<PieceTable::Place> PieceTable::Find(Hva address) const {
  MutexLock lock(mutex_);
  const auto after = by_host_.upper_bound(address);
  if (after == by_host_.begin()) return std::nullopt;
  for (const Gpa start : std::prev(after)->second) {
    const Piece& piece = pieces_.at(start);
    if (!piece.closing) return Place{piece.range, piece.backing.At(address - piece.backing.host)};
  }
  return std::nullopt;
}

std::optional<PieceTable::Pin> PieceTable::TryPin(GuestRange range) {
  MutexLock lock(mutex_);
  const auto it = FindPiece(range.start);
  if (it == pieces_.end() || it->second.closing || !it->second.range.Contains(range))
    return std::nullopt;
  Piece& piece = At(it->first);
  ++piece.pins;
  return Pin(this, Place{piece.range, piece.backing.At(range.start - piece.range.start)});
}

std::optional<GuestRange> PieceTable::FindOverlap(GuestRange range) const {
  MutexLock lock(mutex_);
  const auto after = pieces_.upper_bound(range.last());
  if (after == pieces_.begin()) return std::nullopt;
  const GuestRange& before = std::prev(after)->second.range;
  if (!before.Overlaps(range)) return std::nullopt;
  return before;
}

void PieceTable::Insert(GuestRange range, const Backing& backing) {
  MutexLock lock(mutex_);
  const bool inserted = pieces_.emplace(range.start, Piece{range, backing, false, false, 0}).second;
  CHECK(inserted, "two pieces at {}", range.start);
  if (backing.host == Hva()) return;
  const auto end = SplitHost(backing.host + range.size);
  for (auto it = SplitHost(backing.host); it != end; ++it) it->second.push_back(range.start);
}

// Makes `at` a key.
PieceTable::HostPieces::iterator PieceTable::SplitHost(Hva at) {
  const auto after = by_host_.upper_bound(at);
  if (after == by_host_.begin()) return by_host_.try_emplace(at).first;
  return by_host_.try_emplace(at, std::prev(after)->second).first;
}

void PieceTable::Erase(Gpa start) {
  MutexLock lock(mutex_);
  Piece& piece = At(start);
  piece.closing = true;
  piece.gone = true;
  if (piece.pins == 0) EraseNow(start);
}

void PieceTable::EraseNow(Gpa start) {
  const Piece& piece = At(start);
  if (piece.backing.host != Hva()) {
    const Hva end = piece.backing.host + piece.range.size;
    for (auto it = by_host_.find(piece.backing.host); it != by_host_.end() && it->first <= end;) {
      std::erase(it->second, start);
      // A key at which nothing changes any more goes.
      const bool same = it == by_host_.begin() ? it->second.empty()
                                               : it->second == std::prev(it)->second;
      it = same ? by_host_.erase(it) : std::next(it);
    }
  }
  pieces_.erase(start);
}

void PieceTable::Close(std::span<const Gpa> starts) {
  MutexLock lock(mutex_);
  for (const Gpa start : starts) At(start).closing = true;
}

bool PieceTable::WaitUnpinned(std::span<const Gpa> starts,
                              std::chrono::steady_clock::time_point deadline) {
  MutexLock lock(mutex_);
  for (const Gpa start : starts) {
    const Piece& piece = At(start);
    while (piece.pins != 0) {
      if (!unpinned_.WaitUntil(mutex_, deadline) && piece.pins != 0) return false;
    }
  }
  return true;
}

size_t PieceTable::size() const {
  MutexLock lock(mutex_);
  return pieces_.size();
}

}  // namespace crossbar
