// PieceTable: the ordered table of live guest-physical pieces, for lookups both ways and pins.
// AddressSpace's book; it calls nobody.
//
// Any thread looks up; only AddressSpace changes it, under its own lock. The table's lock is held
// for one search at a time, never over a walk or a system call, so that a lookup waits for nobody.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/locks.h"
#include "memory/address.h"
#include "memory/backing.h"

namespace crossbar {

class PieceTable {
 public:
  // What lies at an address.
  struct Place {
    GuestRange range;  // of the whole piece
    Backing backing;   // at the address asked for
  };

  // While this lives, the memory behind the piece it was taken from may be touched, for somebody
  // else (forwarded DMA): its zap waits before the ack. A pin that outlasts the zap's deadline
  // stops the VM (G5). So whoever holds one bounds its wait, for a server or whatever else, well
  // below AddressSpace::Options::zap_deadline. It ends before the AddressSpace does.
  class Pin {
   public:
    Pin(Pin&& other) noexcept
        : table_(std::exchange(other.table_, nullptr)), place_(other.place_) {}
    Pin& operator=(Pin&&) = delete;
    ~Pin();
    const Place& place() const { return place_; }

   private:
    friend class PieceTable;
    Pin(PieceTable* table, Place place) : table_(table), place_(place) {}
    PieceTable* table_;
    Place place_;
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
  // A piece that is pinned even now stays in everyone's way until its last pin goes; that is all
  // that is left of it.
  void Erase(Gpa start) EXCLUDES(mutex_);
  // From now on the pieces that start at `starts` are found by nobody and take no more pins.
  void Close(std::span<const Gpa> starts) EXCLUDES(mutex_);
  // Until none of them is pinned any more; false where `deadline` passed first.
  bool WaitUnpinned(std::span<const Gpa> starts, std::chrono::steady_clock::time_point deadline)
      EXCLUDES(mutex_);

  // How many pieces there are, with those of which only their pins are left.
  size_t size() const EXCLUDES(mutex_);

 private:
  struct Piece {
    GuestRange range;
    Backing backing;
    bool closing = false;
    bool gone = false;  // erased but for its pins
    unsigned pins = 0;
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
