// PieceTable: the ordered table of live guest-physical pieces, for lookups both ways, pins and the
// cells of the P2P matrix. AddressSpace's book; it calls nobody.
//
// Any thread looks up; only AddressSpace changes it, under its own lock. The table's lock is held for
// a few instructions at a time and never over a system call, so that a lookup never waits for a zap.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/locks.h"
#include "memory/address.h"
#include "memory/backing.h"
#include "memory/p2p_matrix.h"

namespace crossbar {

// Names a DMA domain; ascending in order of joining.
using DomainId = uint64_t;

class PieceTable {
 public:
  // What lies at an address.
  struct Place {
    GuestRange range;  // of the whole piece
    Backing backing;   // at the address asked for
  };

  // While this lives, the piece it was taken from stays placed: its zap waits. Short-lived, by
  // whoever touches the memory behind a piece for somebody else (forwarded DMA).
  class Pin {
   public:
    Pin(Pin&& other) noexcept : table_(std::exchange(other.table_, nullptr)), place_(other.place_) {}
    Pin& operator=(Pin&&) = delete;
    ~Pin();
    const Place& place() const { return place_; }

   private:
    friend class PieceTable;
    Pin(PieceTable* table, Place place) : table_(table), place_(std::move(place)) {}
    PieceTable* table_;
    Place place_;
  };

  struct Cell {
    P2pMatrix::Cell::State state = P2pMatrix::Cell::State::kMapped;
    std::string detail;
    std::chrono::steady_clock::time_point since;
  };

  // Lookups. Nothing where no live piece is, or one that is closing.
  std::optional<Place> Find(Gpa address) const EXCLUDES(mutex_);
  // Where several live pieces share host memory the oldest answers.
  std::optional<Place> Find(Hva address) const EXCLUDES(mutex_);
  // A pin on the piece that holds all of `range`.
  std::optional<Pin> TryPin(GuestRange range) EXCLUDES(mutex_);
  // A live or closing piece that overlaps `range`.
  std::optional<GuestRange> FindOverlap(GuestRange range) const EXCLUDES(mutex_);

  void Insert(GuestRange range, const Backing& backing) EXCLUDES(mutex_);
  // A piece that is pinned even now stays in everyone's way until its last pin goes; that is all that
  // is left of it.
  void Erase(Gpa start) EXCLUDES(mutex_);
  // From now on the pieces that start at `starts` are found by nobody and take no more pins.
  void Close(std::span<const Gpa> starts) EXCLUDES(mutex_);
  // Until none of them is pinned any more; false where `deadline` passed first.
  bool WaitUnpinned(std::span<const Gpa> starts, std::chrono::steady_clock::time_point deadline)
      EXCLUDES(mutex_);

  void SetCell(Gpa start, DomainId domain, Cell cell) EXCLUDES(mutex_);
  void EraseCell(Gpa start, DomainId domain) EXCLUDES(mutex_);
  bool IsMapped(Gpa start, DomainId domain) const EXCLUDES(mutex_);
  // All of one domain's cells, where the domain is gone.
  void EraseDomain(DomainId domain) EXCLUDES(mutex_);

  // The pieces as they are now, by address; those that `domain` has mapped, by address.
  std::vector<Place> Snapshot() const EXCLUDES(mutex_);
  std::vector<GuestRange> MappedIn(DomainId domain) const EXCLUDES(mutex_);
  // The cells of `domain` for BAR pieces, named `name` in them.
  void AppendCells(DomainId domain, const std::string& name,
                   std::vector<P2pMatrix::Cell>& cells) const EXCLUDES(mutex_);
  size_t size() const EXCLUDES(mutex_);

 private:
  struct Piece {
    GuestRange range;
    Backing backing;
    bool closing = false;
    bool gone = false;  // erased but for its pins
    unsigned pins = 0;
    std::map<DomainId, Cell> cells;
  };
  using Pieces = std::map<Gpa, Piece>;
  // The pieces (by their start, oldest first) that share host memory from the key to the next key.
  using HostPieces = std::map<Hva, std::vector<Gpa>>;

  Pieces::const_iterator FindPiece(Gpa address) const REQUIRES(mutex_);
  Piece& At(Gpa start) REQUIRES(mutex_);
  void EraseNow(Gpa start) REQUIRES(mutex_);
  HostPieces::iterator SplitHost(Hva at) REQUIRES(mutex_);

  mutable Mutex mutex_;
  CondVar unpinned_;
  Pieces pieces_ GUARDED_BY(mutex_);
  HostPieces by_host_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
