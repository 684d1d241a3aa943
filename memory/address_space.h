// AddressSpace: the one owner of what lies where in guest-physical memory, for vCPUs and for
// devices.
//
// It alone places and removes guest-physical ranges: memslots, ioeventfds and DMA. A live placement
// is a move-only Mapping; its end is the zap. It knows one MemslotTable and any number of
// DmaDomains; a domain that joins later gets every live piece. There is no subscriber list: the
// order of a map (G1) and of a zap (G2) is a property of one function each, in address_space.cc.
//
// Owned by Vm; outlives every Mapping, DomainHandle, Demotion and Pin. Any thread; a handle is for
// one thread at a time. Map, Zap and AddDomain run one at a time and may take as long as their
// system calls and the two deadlines; lookups and pins never wait for them, nor for the matrix.
// Lock order: a caller's function lock, then this, then the tables, slots and domains.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/locks.h"
#include "base/log.h"
#include "base/result.h"
#include "memory/address.h"
#include "memory/backing.h"
#include "memory/dma_domain.h"
#include "memory/memslot_table.h"
#include "memory/p2p_matrix.h"
#include "memory/peer_table.h"
#include "memory/piece_table.h"

namespace crossbar {

class AddressSpace {
 public:
  struct Piece {
    GuestRange range;  // whole pages, at least one, and no wrap around 2^64: else EINVAL
    Backing backing;   // its host address is page-aligned: CHECKed
  };
  // What is placed and taken away together: one BAR, or all of RAM. Its pieces do not overlap:
  // CHECKed.
  struct Placement {
    std::vector<Piece> pieces;
    std::vector<IoEvent> events;
    // All of a BAR, its pieces (CHECKed) and what is trapped; by the byte. Empty: the pieces alone.
    GuestRange whole = {};
  };

  struct Options {
    // All DMA unmaps and forwards of one zap share this much time.
    std::chrono::milliseconds zap_deadline{5000};
    // A domain has this much time for all it is to map of one placement, or when it joins.
    std::chrono::milliseconds map_deadline{5000};
    // How often an unmap or the removal of a slot or ioeventfd that fails is tried in all; at least
    // 1.
    unsigned tries = 3;
    // G5: something could not be taken away. Has bus mastering cleared everywhere and the VM
    // stopped, by another thread: it is called with AddressSpace's lock held, so it neither calls
    // back, nor takes a lock under which somebody calls AddressSpace (a function's), nor writes a
    // line. The zap goes on after it. It may be called several times. Empty: CHECK.
    std::function<void(const Error&)> on_unsafe;
  };

  // What a zap took away, and when its stages were done.
  struct Zapped {
    size_t pieces = 0;  // none of a claim
    std::chrono::steady_clock::time_point dma_out;
    std::chrono::steady_clock::time_point slots_out;
  };

  // One placement, live or a claim. Its end is the zap.
  class [[nodiscard]] Mapping {
   public:
    Mapping() = default;
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    ~Mapping();

    // Placed now. False for an empty handle, from the start of its zap on, and for a claim that
    // waits.
    bool live() const { return live_ != nullptr && live_->load(std::memory_order_acquire); }
    // Whether there is something to zap: live or a claim.
    bool held() const { return space_ != nullptr; }
    // Grows from each that is held to the next: who came first.
    uint64_t order() const { return record_; }

   private:
    friend class AddressSpace;
    AddressSpace* space_ = nullptr;
    uint64_t record_ = 0;
    std::shared_ptr<const std::atomic<bool>> live_;
  };

  // A domain's membership. Its end takes every piece out of the domain; what a foreign server may
  // still reach stays in the matrix. The end waits for a zap that is under way, which may itself
  // wait for this domain: so the thread that completes its unmaps leaves it to another.
  class [[nodiscard]] DomainHandle {
   public:
    DomainHandle() = default;
    DomainHandle(DomainHandle&& other) noexcept;
    DomainHandle& operator=(DomainHandle&& other) noexcept;
    ~DomainHandle() { Reset(); }
    void Reset();

   private:
    friend class AddressSpace;
    DomainHandle(AddressSpace* space, DomainId id) : space_(space), id_(id) {}
    AddressSpace* space_ = nullptr;
    DomainId id_ = 0;
  };

  // While one lives, no claim is placed: for a reboot or the end of the VM, where all leave and
  // none is to take the place of another for a moment. Claims that are left are placed when it
  // ends.
  class [[nodiscard]] ClaimHold {
   public:
    explicit ClaimHold(AddressSpace& space);
    ClaimHold(ClaimHold&& other) noexcept : space_(std::exchange(other.space_, nullptr)) {}
    ClaimHold& operator=(ClaimHold&&) = delete;
    ~ClaimHold();

   private:
    AddressSpace* space_;
  };

  // While one lives, no BAR piece that was live when it was made has a memslot: the guest's
  // accesses trap. DMA is untouched. Its end puts the slots back for those still live. For finding
  // out which BAR vanished after KVM_RUN failed with EFAULT, which names no address.
  class [[nodiscard]] Demotion {
   public:
    Demotion(Demotion&& other) noexcept
        : space_(std::exchange(other.space_, nullptr)), demoted_(other.demoted_) {}
    Demotion& operator=(Demotion&&) = delete;
    ~Demotion();
    // How many BAR pieces trap while it lives.
    size_t demoted() const { return demoted_; }

   private:
    friend class AddressSpace;
    Demotion(AddressSpace* space, size_t demoted) : space_(space), demoted_(demoted) {}
    AddressSpace* space_;
    size_t demoted_;
  };

  // `slots` is borrowed and outlives this.
  explicit AddressSpace(MemslotTable& slots);
  AddressSpace(MemslotTable& slots, Options options);
  ~AddressSpace();

  // Places all pieces or none (G1, G3). Errors: EINVAL a range that cannot be (they come from
  // guests); EEXIST it overlaps what came first (G4); a memslot or ioeventfd was refused; a domain
  // refused RAM (G6). A BAR that a domain refuses is a cell of the matrix and a warning.
  Result<Mapping> Map(Placement placement) EXCLUDES(update_);

  // As Map, but what overlaps another becomes a claim: it is placed as soon as nothing that came
  // first is in its way, without its owner having to ask again. (Not at the end of a pin that
  // outlasted its zap: then the VM stops anyway.) Who came first keeps all of its addresses, mapped,
  // trapped or a claim itself: so nobody is placed over what another's trap answers.
  Result<Mapping> MapOrClaim(Placement placement) EXCLUDES(update_);

  // Takes the placements away: all DMA in all domains, then all slots (G2). When it returns, no
  // guest access and no peer's DMA reaches them any more (G7), but for servers that the matrix
  // calls unrevoked. Handles that hold nothing cost nothing (G9).
  Zapped Zap(std::span<Mapping* const> mappings) EXCLUDES(update_);

  // Maps every live piece in `domain` (borrowed until the handle ends), in order of address. Errors
  // leave nothing mapped in it: it refused RAM, or it has ended (lost: see the matrix).
  Result<DomainHandle> AddDomain(DmaDomain& domain) EXCLUDES(update_);

  std::optional<PieceTable::Place> Find(Gpa address) const { return table_.Find(address); }
  std::optional<PieceTable::Place> Find(Hva address) const { return table_.Find(address); }
  // See PieceTable::Pin on how long it may be held.
  std::optional<PieceTable::Pin> TryPin(GuestRange range) { return table_.TryPin(range); }

  // A snapshot: whatever has changed since its generation, the generation here is another.
  P2pMatrix Peers() const;

  // Grows with every change of what is placed or which domain has it: after the pieces of a zap
  // have closed, and again when it is done. For caches and the matrix.
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

  // Something could not be taken away, now or earlier (Options::on_unsafe): a zap that has returned promises
  // nothing any more, so whoever called it leaves the hardware as it is.
  bool unsafe() const { return unsafe_.load(std::memory_order_acquire); }

  Demotion DemoteBars() EXCLUDES(update_);
  // BAR pieces that lost their memslot for good: KVM did not take it back after a demotion, so that
  // every access of the guest traps. For the report.
  size_t trapped_pieces() const { return trapped_pieces_.load(std::memory_order_relaxed); }

 private:
  // Holds update_. What was found worth a line is written when it is let go, so that whoever does
  // not read our stderr holds up nobody else's zap.
  class SCOPED_CAPABILITY Change {
   public:
    explicit Change(AddressSpace& space) ACQUIRE(space.update_);
    ~Change() RELEASE();
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;

   private:
    AddressSpace& space_;
  };
  struct Record {
    Placement placement;
    std::vector<GuestRange> extent;  // all it keeps from those that come later
    std::shared_ptr<std::atomic<bool>> live;
  };
  // A memslot, or what it was before a demotion.
  struct Slot {
    std::optional<uint32_t> number;
    GuestRange range;
    Backing backing;
    bool trapped = false;  // counts in trapped_pieces_
  };
  struct Domain {
    DmaDomain* domain = nullptr;
    bool serves = true;  // as far as it was asked
    // BARs whose refusal was told: each is once for sure, again within the limit, since a guest may
    // place its BARs as often as it likes.
    std::set<std::pair<std::string, unsigned>> told = {};
    RateLimit again = {};
  };
  // Of a placement, how much stands: the first so many of each.
  struct Placed {
    const Placement* placement = nullptr;
    size_t pieces = 0;
    size_t events = 0;
  };
  struct Unmap {
    DomainId domain = 0;
    GuestRange range;
    uint64_t done = 0;  // bytes, by tries that came short
    DmaDomain::UnmapTicket ticket = 0;
  };

  static Result<> CheckRanges(const Placement& placement);
  static std::vector<GuestRange> Extent(const Placement& placement);
  Result<Mapping> Place(Placement placement, bool may_claim) EXCLUDES(update_);
  Result<> PlaceRecord(const Record& record) REQUIRES(update_);
  // What came before the record `id` and is in the way of its `extent`, or of one range of it.
  std::optional<GuestRange> FindEarlier(uint64_t id, std::span<const GuestRange> extent) const
      REQUIRES(update_);
  std::optional<GuestRange> FindEarlier(uint64_t id, const GuestRange& range) const
      REQUIRES(update_);
  Result<> PlaceSlots(Placed& placed) REQUIRES(update_);
  Result<> MapDma(const Placement& placement) REQUIRES(update_);
  Result<> MapPiece(DomainId id, const Piece& piece, DmaDomain::Deadline deadline)
      REQUIRES(update_);
  void TellRefusal(Domain& domain, const Piece& piece, const std::string& reason)
      REQUIRES(update_);
  void PlaceClaims() REQUIRES(update_);
  void HoldClaims() EXCLUDES(update_);
  void ReleaseClaims() EXCLUDES(update_);

  Zapped TakeAway(std::span<const Placed> placed) REQUIRES(update_);
  // Those of domains that serve, each with its ticket.
  std::vector<Unmap> StartUnmaps(std::vector<Unmap> unmaps) REQUIRES(update_);
  void FinishUnmaps(std::vector<Unmap> unmaps, DmaDomain::Deadline deadline) REQUIRES(update_);
  std::vector<Unmap> AwaitUnmaps(std::vector<Unmap> unmaps, DmaDomain::Deadline deadline,
                                 std::optional<Error>& error) REQUIRES(update_);
  std::optional<Error> AwaitOne(Unmap& unmap, DmaDomain::Deadline deadline) REQUIRES(update_);
  void RemoveSlots(const Placed& placed) REQUIRES(update_);
  void RemoveSlot(Slot& slot) REQUIRES(update_);
  // Within the bound of G5.
  Result<> TryAgain(const std::function<Result<>()>& step) REQUIRES(update_);
  void MustSucceed(const std::function<Result<>()>& removal) REQUIRES(update_);

  void Withdraw(DomainId id) EXCLUDES(update_);
  void End(DomainId id, DmaDomain::State state) REQUIRES(update_);
  void Remove(DomainId id) REQUIRES(update_);
  // By address.
  std::vector<const Piece*> LivePieces() const REQUIRES(update_);
  void RestoreBars() EXCLUDES(update_);
  void Unsafe(const Error& error) REQUIRES(update_);
  void Tell(std::string line) REQUIRES(update_) { lines_.push_back(std::move(line)); }
  // Within a limit, for what a guest or a server can make happen again and again.
  void Tell(RateLimit& limit, std::string line) REQUIRES(update_);
  void Changed() { generation_.fetch_add(1, std::memory_order_acq_rel); }

  // Constant after construction.
  MemslotTable& slots_;
  const Options options_;

  // Held over a whole change, system calls and waits included.
  mutable Mutex update_;
  std::map<uint64_t, Record> records_ GUARDED_BY(update_);
  std::set<uint64_t> claims_ GUARDED_BY(update_);  // of records_, who came first is first
  // Of all others, by start; none overlaps another.
  std::map<Gpa, GuestRange> live_extents_ GUARDED_BY(update_);
  std::map<Gpa, Slot> piece_slots_ GUARDED_BY(update_);  // of the pieces that have a host address
  std::map<DomainId, Domain> domains_ GUARDED_BY(update_);
  uint64_t next_id_ GUARDED_BY(update_) = 1;
  unsigned demotions_ GUARDED_BY(update_) = 0;
  unsigned claim_holds_ GUARDED_BY(update_) = 0;
  std::vector<std::string> lines_ GUARDED_BY(update_);  // to be written, as warnings
  RateLimit trap_limit_;
  std::atomic<size_t> trapped_pieces_ = 0;
  std::atomic<bool> unsafe_ = false;

  PieceTable table_;
  PeerTable peers_;
  std::atomic<uint64_t> generation_ = 0;
};

}  // namespace crossbar
