// Strict fakes of KVM and of DMA domains for the heart's property test.
//
// They do what the contracts in memory/ demand of the real ones and complain (World::Violation)
// where AddressSpace breaks its side: an overlap, an unmap of what was never mapped, a ticket
// awaited twice, any call to a domain that it knows has ended or that has left.
#pragma once

#include <map>

#include "tests/heart/world.h"

namespace crossbar::heart {

class FakeKvm : public MemslotTable {
 public:
  explicit FakeKvm(World& world) : world_(world) {}

  Result<uint32_t> Add(GuestRange range, Hva host, bool read_only) override;
  Result<> Remove(uint32_t number) override;
  Result<> AddIoEvent(const IoEvent& event) override;
  Result<> RemoveIoEvent(const IoEvent& event) override;
  std::vector<Memslot> Slots() const override;
  const std::vector<IoEvent>& events() const { return events_; }

 private:
  static constexpr uint32_t kLimit = 64;

  World& world_;
  std::map<uint32_t, Memslot> slots_;
  std::vector<IoEvent> events_;
};

// Which BARs a domain refuses: what the three real ones can and cannot map.
struct DomainRules {
  bool needs_host = false;     // type1
  bool needs_dma_buf = false;  // iommufd
  bool needs_file = false;     // vfio-user without forwarding
  uint64_t bar_limit = ~0ull;  // last IOVA for a BAR
  size_t max_bars = SIZE_MAX;
  bool foreign = false;  // a server that nobody can kill: where it ends it is lost
};

class FakeDomain : public DmaDomain {
 public:
  FakeDomain(World& world, int number, DomainRules rules)
      : world_(world), number_(number), rules_(rules) {}

  std::string name() const override { return fmt::format("domain {}", number_); }
  Result<std::string> Map(GuestRange range, const Backing& backing, Deadline deadline) override;
  State state() const override;
  UnmapTicket StartUnmap(GuestRange range) override;
  Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) override;

  // It ends, and AddressSpace has yet to learn of it.
  void End() { EndAs(rules_.foreign ? State::kLost : State::kGone); }
  bool ended() const { return state_ != State::kServing; }
  bool foreign() const { return rules_.foreign; }
  // AddressSpace has learned of it, or gave it up: it may only await what it has started.
  void Forbid() { forbidden_ = true; }
  // Why its rules forbid the mapping; nothing where they do not.
  std::optional<std::string> Refuses(GuestRange range, const Backing& backing) const;

  struct Mapped {
    GuestRange range;
    Backing backing;
    uint64_t left = 0;  // bytes that no unmap has taken yet
  };
  const std::map<Gpa, Mapped>& mapped() const { return mapped_; }
  size_t tickets() const { return tickets_.size(); }
  int number() const { return number_; }

 private:
  void EndAs(State state);
  Event::Outcome Ending() const;

  World& world_;
  const int number_;
  const DomainRules rules_;
  State state_ = State::kServing;
  bool forbidden_ = false;
  std::map<Gpa, Mapped> mapped_;
  std::map<UnmapTicket, GuestRange> tickets_;
  UnmapTicket next_ticket_ = 1;
};

class FakeOwner : public BarOwner {
 public:
  FakeOwner(World& world, int number) : world_(world), number_(number) {}
  std::string bar_owner_name() const override { return fmt::format("0000:0{}:00.0", number_); }
  void OnVanished(Gpa /*address*/) override {
    world_.Violation("AddressSpace called a BAR's owner");
  }

 private:
  World& world_;
  const int number_;
};

}  // namespace crossbar::heart
