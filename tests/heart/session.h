// A session of the heart's property test: one AddressSpace from its making to its end, with the
// model beside it. Everything that happens follows from one seed; each operation draws from a
// generator of its own, so that leaving some out does not change what the others are.
#pragma once

#include <atomic>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "tests/heart/generate.h"
#include "tests/heart/model.h"

namespace crossbar::heart {

class Session {
 public:
  Session(uint64_t seed, Coverage& coverage);
  // Only after Finish, or where its end does not matter.
  ~Session();

  // How many operations it is to have, before Finish.
  uint64_t length() const { return length_; }
  // Does operation `n` and compares everything. Throws Mismatch.
  void Step(uint64_t n);
  // Takes everything away, checks that nothing is left, and ends the AddressSpace.
  void Finish();

  uint64_t hash() const { return world_.hash; }
  uint64_t events() const { return world_.events; }
  const std::deque<std::string>& history() const { return history_; }
  std::string TraceText() const;

 private:
  struct Holder {
    AddressSpace::Mapping handle;
    uint64_t id = 0;  // the model's; 0: holds nothing
  };
  struct Member {
    std::unique_ptr<FakeDomain> fake;
    AddressSpace::DomainHandle handle;
  };
  struct HeldPin {
    PieceTable::Pin pin;
    uint64_t piece = 0;
  };

  // The operations (operations.cc).
  void DoMap(Rng& rng);
  void MapInto(Holder& holder, const AddressSpace::Placement& placement, bool may_claim);
  void DoZap(Rng& rng);
  void ZapTogether(std::vector<Holder*> holders, const char* name);
  void DoZapWhilePinned(Rng& rng);
  void DoMove(Rng& rng);
  void DoAssign(Rng& rng);
  void DoDrop(Rng& rng);
  void DoAddDomain(Rng& rng);
  void DoEndDomain(Rng& rng);
  void DoEndUnseen(Rng& rng);
  void DoAssignDomain(Rng& rng);
  void DoBeginDemotion(Rng& rng);
  void DoEndDemotion(Rng& rng);
  void DoPin(Rng& rng);
  void DoUnpin(Rng& rng);
  void DoLookups(Rng& rng);
  void DoNothing(Rng& rng);

  // Around each call of AddressSpace: the trace starts anew, and after it was read all is compared.
  void Begin(std::string what);
  void End();
  void Note(std::string what);
  void ExpectNoCalls();
  // Before a zap of `id`: its pins would be waited for.
  void ForgetPinsOf(uint64_t id);
  void WatchClosing(const Event& event);
  Holder& AnyHolder(Rng& rng) { return holders_[rng.Below(holders_.size())]; }
  Holder* EmptyHolder();

  // Comparing (compare.cc).
  void CompareAll();
  void CompareKvm();
  void CompareDomains();
  void CompareHandles();
  void CompareMatrix();
  struct ExpectedCell {
    GuestRange range;
    std::string target;
    uint8_t bar = 0;
    uint64_t bar_offset = 0;
    Model::Cell* cell = nullptr;
  };
  void CompareCell(const P2pMatrix::Cell& actual, const std::string& initiator,
                   const ExpectedCell& expected);
  void CompareLookup(Gpa address);
  void CompareLookup(Hva address);
  void ComparePlace(const char* what, const std::optional<PieceTable::Place>& place,
                    const Model::Live* piece, uint64_t offset);
  void CheckTimes(const AddressSpace::Zapped& zapped, Model::Clock::time_point before);

  const uint64_t seed_;
  Coverage& coverage_;
  World world_;
  Rng rng_;
  Generator generator_;
  uint64_t length_;
  bool patient_;  // the zap deadline is long, so nothing pinned is zapped but by DoZapWhilePinned
  const std::chrono::milliseconds zap_deadline_;
  const std::chrono::milliseconds map_deadline_{7'000};
  FakeKvm kvm_;
  Model model_;
  std::unique_ptr<AddressSpace> space_;
  std::vector<Holder> holders_;
  std::vector<Member> members_;
  std::vector<Member> left_;  // their fakes complain if they are called
  std::vector<std::unique_ptr<AddressSpace::Demotion>> demotions_;
  std::list<HeldPin> pins_;

  std::deque<std::string> history_;
  std::vector<Fault> faults_;  // for the next Begin
  std::vector<const Holder*> closing_;
  const std::atomic<bool>* drained_ = nullptr;  // must be true before a slot goes
  uint64_t operation_ = 0;
  uint64_t next_id_ = 1;
  int next_domain_ = 0;
  uint64_t generation_ = 0;
  Model::Clock::time_point began_;
};

}  // namespace crossbar::heart
