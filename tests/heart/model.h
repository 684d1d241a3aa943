// The reference model of AddressSpace, written from the contracts in memory/*.h and DESIGN.md 3
// and 4.
//
// It keeps what ought to be placed where in plain containers, and reads the trace of each operation
// against the rules: which calls must be there, in which order, and none besides. Where the
// contract leaves an order open (which slot of a placement comes first), the model takes any. What
// a call that fails leads to it learns from the outcome in the trace; what AddressSpace said of it
// the session compares afterwards.
#pragma once

#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/heart/coverage.h"
#include "tests/heart/fakes.h"

namespace crossbar::heart {

// The system is not as it ought to be.
struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Args>
[[noreturn]] void Differ(fmt::format_string<Args...> format, Args&&... args) {
  throw Mismatch(fmt::format(format, std::forward<Args>(args)...));
}

// Reads the trace of one operation from its start to its end.
class Cursor {
 public:
  explicit Cursor(const std::vector<Event>& trace) : trace_(trace) {}
  const Event* Peek() const { return next_ < trace_.size() ? &trace_[next_] : nullptr; }
  const Event& Take(const char* expected);
  void End() const;

 private:
  const std::vector<Event>& trace_;
  size_t next_ = 0;
};

class Model {
 public:
  using Clock = std::chrono::steady_clock;
  using Placement = AddressSpace::Placement;
  enum class Placed : uint8_t { kYes, kClaim, kOverlap, kRefused };

  struct Cell {
    P2pMatrix::Cell::State state = P2pMatrix::Cell::State::kMapped;
    std::string text;                        // what `detail` is, or holds (refused)
    std::optional<Clock::time_point> since;  // once it was seen
  };
  // What a foreign server may still reach: all of one piece of a BAR, or RAM.
  struct Kept {
    std::string target;
    uint8_t bar = 0;
    uint64_t bar_offset = 0;
    GuestRange range;  // the last of several
    Cell cell;
  };
  struct Domain {
    FakeDomain* fake = nullptr;  // none once it has left
    std::string name;
    bool ended = false;
    std::set<Gpa> mapped;
    std::map<Gpa, Cell> bars;
    std::vector<Kept> kept;
  };
  struct Live {
    uint64_t record = 0;
    uint64_t piece = 0;  // names this placing of it, for pins
    GuestRange range;
    Backing backing;
    std::optional<uint32_t> slot;
  };
  struct Record {
    Placement placement;
    bool live = false;
  };

  Model(unsigned tries, Clock::duration zap_deadline, Coverage& coverage)
      : tries_(tries), zap_deadline_(zap_deadline), coverage_(coverage) {}

  // The operations. Each reads its part of the trace and changes the books.
  Placed Map(uint64_t id, const Placement& placement, bool may_claim, Cursor& cursor);
  void Zap(const std::set<uint64_t>& ids, Cursor& cursor);
  bool AddDomain(FakeDomain& fake, Cursor& cursor);
  void EndDomain(FakeDomain& fake, Cursor& cursor);
  // How many pieces trap.
  size_t BeginDemotion(Cursor& cursor);
  void EndDemotion(Cursor& cursor);
  void Pin(uint64_t piece) { pins_.insert(piece); }
  void Unpin(uint64_t piece);

  // The books.
  const Live* Find(Gpa address) const;
  // Whether what came before `id` has some of the placement's addresses, or a pin holds one that is gone.
  bool Overlaps(uint64_t id, const Placement& placement) const;
  bool IsLive(uint64_t id) const;
  const std::map<Gpa, Live>& live() const { return live_; }
  const std::map<uint64_t, Record>& records() const { return records_; }
  const std::vector<uint64_t>& claims() const { return claims_; }
  const std::map<uint32_t, Memslot>& slots() const { return slots_; }
  const std::vector<IoEvent>& events() const { return events_; }
  // In order of joining, with those that have left and may still reach something.
  std::vector<Domain>& domains() { return domains_; }
  std::set<Gpa> StuckIn(const FakeDomain& fake) const;
  unsigned demotions() const { return demotions_; }
  bool pinned(uint64_t piece) const { return pins_.contains(piece); }
  // Whether the last operation changed what is placed or which domain has it.
  bool changed() const { return changed_; }
  // Or may count as such: a domain without pieces comes or goes.
  bool may_count() const { return changed_ || may_count_; }
  void StartOperation() { changed_ = may_count_ = false; }
  unsigned tries() const { return tries_; }

 private:
  struct Unmap {
    FakeDomain* domain = nullptr;
    GuestRange range;
  };
  // The calls of one attempt to place.
  struct Attempt {
    const Placement& placement;
    std::vector<std::optional<uint32_t>> slots;  // by piece
    std::vector<IoEvent> events;
    std::vector<Unmap> mapped;
    std::vector<bool> slot_done;
    std::vector<bool> event_done;
  };

  bool Place(uint64_t id, Cursor& cursor);
  bool PlaceSlots(Attempt& attempt, Cursor& cursor);
  bool PlaceDma(Attempt& attempt, Cursor& cursor);
  bool PlaceDmaPiece(const Event& event, const AddressSpace::Piece& piece, Domain& domain,
                     Cursor& cursor);
  void RollBack(Attempt& attempt, Cursor& cursor);
  void PlaceClaims(Cursor& cursor);
  void ReadUnmaps(const std::vector<Unmap>& unmaps, size_t stuck_pins, Cursor& cursor);
  void ReadRemovals(std::set<uint32_t> slots, std::vector<IoEvent> events, Cursor& cursor);
  // Reads what the domain says of its state, and whether it serves.
  bool ReadState(Domain& domain, Cursor& cursor);
  void End(Domain& domain, DmaDomain::State state);
  void Keep(Domain& domain, Gpa start);
  void Leave(Domain& domain);
  Domain* FindDomain(int number);

  const unsigned tries_;
  const Clock::duration zap_deadline_;
  Coverage& coverage_;
  std::map<uint64_t, Record> records_;
  std::vector<uint64_t> claims_;  // oldest first
  std::map<Gpa, Live> live_;
  // Zapped while pinned: in the way until the last pin goes.
  std::map<uint64_t, GuestRange> gone_;
  std::multiset<uint64_t> pins_;
  std::map<uint32_t, Memslot> slots_;
  std::vector<IoEvent> events_;
  std::vector<Domain> domains_;
  // What could not be unmapped, by domain.
  std::map<int, std::set<Gpa>> stuck_;
  // The pieces that are being placed, for the matrix to name if a server does not answer.
  std::map<Gpa, Live> placing_;
  unsigned demotions_ = 0;
  uint64_t next_piece_ = 1;
  bool changed_ = false;
  bool may_count_ = false;
};

}  // namespace crossbar::heart
