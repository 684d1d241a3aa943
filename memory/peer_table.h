// PeerTable: what each DMA domain has mapped, may still reach, or was refused: the book behind the
// P2pMatrix. It calls nobody.
//
// AddressSpace's; only it changes the table, under its own lock, and Peers reads it from any
// thread. The table's lock is held for a few instructions by each change, and for a list of
// pointers by Snapshot, which makes the text of the matrix after it has let go. No lookup takes it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/locks.h"
#include "memory/address.h"
#include "memory/backing.h"
#include "memory/p2p_matrix.h"

namespace crossbar {

// Names a DMA domain; ascending in order of joining.
using DomainId = uint64_t;

class PeerTable {
 public:
  using State = P2pMatrix::Cell::State;

  void AddDomain(DomainId domain, std::string name) EXCLUDES(mutex_);
  // It leaves. What it may still reach stays in the matrix, under its name.
  void RemoveDomain(DomainId domain) EXCLUDES(mutex_);

  // The piece at `range` is mapped in `domain`, as `how` says; or it is not, for this reason.
  // `unguarded`: see DmaDomain::Unguarded.
  void SetMapped(DomainId domain, GuestRange range, const Backing& backing, const std::string& how,
                 const std::string& unguarded = {}) EXCLUDES(mutex_);
  void SetRefused(DomainId domain, GuestRange range, const Backing& backing,
                  const std::string& reason, const std::string& unguarded = {}) EXCLUDES(mutex_);
  // `domain` has given the piece back.
  void Erase(DomainId domain, Gpa start) EXCLUDES(mutex_);
  // The piece leaves. All domains have given it back, but for what they keep.
  void ErasePiece(Gpa start) EXCLUDES(mutex_);
  bool IsMapped(DomainId domain, Gpa start) const EXCLUDES(mutex_);
  // By address.
  std::vector<GuestRange> Mapped(DomainId domain) const EXCLUDES(mutex_);

  // `domain` is lost: it may go on reaching all that it has mapped, and is asked for nothing any
  // more. Such cells outlive piece and domain. There is one for each piece of a BAR, and one for all
  // of RAM.
  void Keep(DomainId domain) EXCLUDES(mutex_);
  // Nothing is reached through `domain` any more.
  void Forget(DomainId domain) EXCLUDES(mutex_);

  // `generation` is for the matrix.
  P2pMatrix Snapshot(uint64_t generation) const EXCLUDES(mutex_);

 private:
  using Cell = P2pMatrix::Cell;
  // A cell never changes: it is replaced, so that Snapshot can read it without the lock.
  using CellPtr = std::shared_ptr<const Cell>;
  struct Entry {
    bool mapped = false;
    CellPtr cell;
  };
  struct Piece {
    bool ram = false;
    std::map<DomainId, Entry> entries;
  };
  struct Domain {
    std::string name;
    std::vector<CellPtr> kept;
  };

  void Set(DomainId domain, const Backing& backing, bool mapped, Cell cell) EXCLUDES(mutex_);
  void EraseAll(DomainId domain) REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::map<DomainId, Domain> domains_ GUARDED_BY(mutex_);
  // What all domains have of a piece stands in one place: a zap asks for each of them, and what it takes
  // must not grow with the pieces of others.
  std::map<Gpa, Piece> pieces_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
