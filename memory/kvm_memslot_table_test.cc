// KvmMemslotTable on the real KVM, by itself and under AddressSpace.
#include "memory/kvm_memslot_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <atomic>
#include <iostream>
#include <optional>
#include <thread>

#include "base/failpoint.h"
#include "base/kvm_uapi.h"
#include "base/log.h"
#include "base/sys.h"
#include "memory/host_mapping.h"
#include "memory/testing/sweep.h"
#include "tests/need_kvm.h"

namespace crossbar::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kSize = 64 * kPageSize;

class KvmVm {
 public:
  KvmVm() {
    const Fd kvm = sys::Open("/dev/kvm", O_RDWR).value();
    vm = Fd(sys::Ioctl(kvm.get(), SYS_REQUEST(KVM_CREATE_VM)).value());
    limit = static_cast<uint32_t>(
        sys::Ioctl(vm.get(), SYS_REQUEST(KVM_CHECK_EXTENSION), KVM_CAP_NR_MEMSLOTS).value());
    memory = sys::MemfdCreate("bar", 0).value();
    EXPECT_TRUE(sys::Ftruncate(memory.get(), kSize));
    mapping = HostMapping::Map(memory.get(), 0, kSize, PROT_READ | PROT_WRITE).value();
    event = sys::EventFd().value();
    table.emplace(KvmMemslotTable::Create(vm.get()).value());
  }

  Hva host(uint64_t page = 0) const { return mapping.address() + page * kPageSize; }

  bool AddDirectly(uint32_t number, GuestRange range) const {
    kvm_userspace_memory_region region{};
    region.slot = number;
    region.guest_phys_addr = range.start.value();
    region.memory_size = range.size;
    region.userspace_addr = host().value();
    return ::ioctl(vm.get(), KVM_SET_USER_MEMORY_REGION, &region) == 0;
  }
  // Whether KVM itself has a slot that overlaps `range`: tries another one there.
  bool HasSlot(GuestRange range) const {
    if (!AddDirectly(limit - 1, range)) {
      EXPECT_EQ(errno, EEXIST);
      return true;
    }
    EXPECT_TRUE(AddDirectly(limit - 1, {range.start, 0}));
    return false;
  }
  bool HasSlot(Gpa start) const { return HasSlot({start, kPageSize}); }
  // Whether KVM has an ioeventfd of four bytes: tries another one there, or to take it away. Each
  // is quick where it fails, so `guess` well.
  bool HasEvent(Gpa address, bool guess) const {
    const bool has = SetEvent(address, guess ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN) != guess;
    if (has == guess) return has;
    EXPECT_TRUE(SetEvent(address, guess ? KVM_IOEVENTFD_FLAG_DEASSIGN : 0));  // as it was
    return has;
  }
  bool SetEvent(Gpa address, uint32_t flags) const {
    kvm_ioeventfd request{};
    request.addr = address.value();
    request.len = 4;
    request.fd = event.get();
    request.flags = flags;
    return ::ioctl(vm.get(), KVM_IOEVENTFD, &request) == 0;
  }

  Fd vm;
  uint32_t limit = 0;
  Fd memory;
  HostMapping mapping;
  Fd event;
  std::optional<KvmMemslotTable> table;
};

constexpr GuestRange Page(uint64_t start) { return {Gpa(start), kPageSize}; }

struct KvmMemslots : ::testing::Test {
  void SetUp() override {
    NEED_KVM();
    failpoints::Reset();
    kvm.emplace();
  }
  void TearDown() override { failpoints::Reset(); }
  // The error of adding a page at `start`, or 0.
  int Add(uint64_t start) {
    const auto added = kvm->table->Add(Page(start), kvm->host(), false);
    return added ? 0 : added.error().code();
  }
  std::optional<KvmVm> kvm;
};

TEST_F(KvmMemslots, NumbersAreReusedLowestFirst) {
  KvmMemslotTable& table = *kvm->table;
  for (uint32_t i = 0; i < 4; ++i)
    EXPECT_EQ(table.Add(Page(i * kPageSize), kvm->host(i), false).value(), i);
  EXPECT_TRUE(table.Remove(2));
  EXPECT_TRUE(table.Remove(0));
  EXPECT_EQ(table.Add(Page(0x10000), kvm->host(), false).value(), 0u);
  EXPECT_EQ(table.Add(Page(0x11000), kvm->host(), true).value(), 2u);
  EXPECT_EQ(table.Add(Page(0x12000), kvm->host(), false).value(), 4u);
  const std::vector<Memslot> slots = table.Slots();
  ASSERT_THAT(slots, SizeIs(5));
  for (uint32_t i = 0; i < 5; ++i) EXPECT_EQ(slots[i].number, i);
  EXPECT_EQ(slots[0].range, Page(0x10000));
  EXPECT_EQ(slots[0].host, kvm->host());
  EXPECT_TRUE(slots[2].read_only);
  EXPECT_FALSE(slots[1].read_only);
}

TEST_F(KvmMemslots, WhatIsAddedAndRemovedIsSoInKvm) {
  EXPECT_FALSE(kvm->HasSlot(Gpa(0x1000)));
  const uint32_t number = kvm->table->Add(Page(0x1000), kvm->host(), false).value();
  EXPECT_TRUE(kvm->HasSlot(Gpa(0x1000)));
  EXPECT_TRUE(kvm->table->Remove(number));
  EXPECT_FALSE(kvm->HasSlot(Gpa(0x1000)));
  const IoEvent event{Gpa(0x2000), 4, std::nullopt, kvm->event.get()};
  EXPECT_TRUE(kvm->table->AddIoEvent(event));
  EXPECT_TRUE(kvm->HasEvent(Gpa(0x2000), true));
  EXPECT_TRUE(kvm->table->RemoveIoEvent(event));
  EXPECT_FALSE(kvm->HasEvent(Gpa(0x2000), false));
}

TEST_F(KvmMemslots, G4KvmRefusesAnOverlapAndTheErrorNamesTheSlot) {
  EXPECT_EQ(Add(0x1000), 0);
  const auto second = kvm->table->Add({Gpa(0), 0x2000}, kvm->host(), false);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), EEXIST);
  EXPECT_THAT(second.error().message(), HasSubstr("KVM_SET_USER_MEMORY_REGION slot 1 0x0-0x1fff"));
  EXPECT_THAT(kvm->table->Slots(), SizeIs(1));
  EXPECT_EQ(kvm->table->Add(Page(0x3000), kvm->host(), false).value(), 1u) << "no number was lost";
}

TEST_F(KvmMemslots, BeyondTheLimitIsEnospcWithoutACall) {
  KvmMemslotTable table = KvmMemslotTable::Create(kvm->vm.get(), 3).value();
  for (uint32_t i = 0; i < 3; ++i)
    EXPECT_TRUE(table.Add(Page(i * kPageSize), kvm->host(), false)) << i;
  failpoints::StartCensus();
  const auto beyond = table.Add(Page(0x10000), kvm->host(), false);
  ASSERT_FALSE(beyond);
  EXPECT_EQ(beyond.error().code(), ENOSPC);
  EXPECT_EQ(beyond.error().message(), "all 3 memslots are in use");
  EXPECT_THAT(failpoints::Census(), IsEmpty());
  EXPECT_TRUE(table.Remove(1));
  EXPECT_EQ(table.Add(Page(0x10000), kvm->host(), false).value(), 1u);
}

TEST_F(KvmMemslots, TheCapabilityIsTheNumberOfSlotsThatKvmTakes) {
  std::cout << "KVM_CAP_NR_MEMSLOTS is " << kvm->limit << "\n";
  EXPECT_TRUE(kvm->AddDirectly(kvm->limit - 1, Page(0x1000)));
  EXPECT_FALSE(kvm->AddDirectly(kvm->limit, Page(0x2000)));
  EXPECT_EQ(errno, EINVAL);
}

TEST_F(KvmMemslots, ACallThatFailsLeavesTheTableAsItWas) {
  ASSERT_TRUE(failpoints::Arm("KVM_SET_USER_MEMORY_REGION#1=EFAULT*1"));
  EXPECT_EQ(Add(0x1000), EFAULT);
  EXPECT_EQ(failpoints::Fired(), 1u);
  EXPECT_THAT(kvm->table->Slots(), IsEmpty());
  const uint32_t number = kvm->table->Add(Page(0x1000), kvm->host(), false).value();
  EXPECT_EQ(number, 0u);
  failpoints::Reset();
  ASSERT_TRUE(failpoints::Arm("KVM_SET_USER_MEMORY_REGION#1=EFAULT*1"));
  EXPECT_FALSE(kvm->table->Remove(number));
  EXPECT_EQ(failpoints::Fired(), 1u);
  EXPECT_THAT(kvm->table->Slots(), SizeIs(1));
  EXPECT_TRUE(kvm->HasSlot(Gpa(0x1000)));
  EXPECT_TRUE(kvm->table->Remove(number));
}

TEST_F(KvmMemslots, AnIoeventfdMayMatchOnlyOneValue) {
  const IoEvent one{Gpa(0x2000), 4, 1, kvm->event.get()};
  const IoEvent two{Gpa(0x2000), 4, 2, kvm->event.get()};
  EXPECT_TRUE(kvm->table->AddIoEvent(one));
  EXPECT_TRUE(kvm->table->AddIoEvent(two));
  EXPECT_EQ(kvm->table->AddIoEvent(one).error().code(), EEXIST);
  EXPECT_TRUE(kvm->table->RemoveIoEvent(one));
  EXPECT_EQ(kvm->table->RemoveIoEvent(one).error().code(), ENOENT);
  EXPECT_TRUE(kvm->table->RemoveIoEvent(two));
  const IoEvent any{Gpa(0x3000), 0, std::nullopt, kvm->event.get()};
  EXPECT_TRUE(kvm->table->AddIoEvent(any));
  EXPECT_TRUE(kvm->table->RemoveIoEvent(any));
}

// --- Under AddressSpace

struct KvmSpace : KvmMemslots {
  void SetUp() override {
    KvmMemslots::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    space.emplace(*kvm->table, AddressSpace::Options{.on_unsafe = [this](const Error& error) {
                    unsafe.push_back(error.message());
                  }});
  }
  Piece BarAt(uint64_t start) const {
    Piece piece = Bar(start);
    piece.backing.host = kvm->host(start / kPageSize % 64);
    return piece;
  }
  std::vector<std::string> unsafe;
  std::optional<AddressSpace> space;
};

TEST_F(KvmSpace, G5ADeletionThatFailsIsTriedAgain) {
  auto mapping = space->Map(Of({BarAt(0x1000), BarAt(0x2000)})).value();
  ASSERT_TRUE(failpoints::Arm("KVM_SET_USER_MEMORY_REGION#1=ENOMEM*2"));
  Mapping* const mappings[] = {&mapping};
  space->Zap(mappings);
  EXPECT_EQ(failpoints::Fired(), 2u);
  EXPECT_THAT(unsafe, IsEmpty());
  EXPECT_FALSE(kvm->HasSlot(Gpa(0x1000)));
  EXPECT_FALSE(kvm->HasSlot(Gpa(0x2000)));
}

TEST_F(KvmSpace, G5ADeletionThatKeepsFailingIsAnEmergencyAndTheOtherSlotsGo) {
  auto mapping = space->Map(Of({BarAt(0x1000), BarAt(0x2000)})).value();
  ASSERT_TRUE(failpoints::Arm("KVM_SET_USER_MEMORY_REGION#1=ENOMEM*3"));
  Mapping* const mappings[] = {&mapping};
  space->Zap(mappings);
  EXPECT_THAT(unsafe, ElementsAre(HasSubstr("(delete): Cannot allocate memory")));
  EXPECT_FALSE(kvm->HasSlot(Gpa(0x1000)));
  EXPECT_TRUE(kvm->HasSlot(Gpa(0x2000)));
  // Nobody trusts that place any more: KVM refuses it, and the VM lives.
  EXPECT_EQ(space->Map(Of({BarAt(0x2000)})).error().code(), EEXIST);
}

TEST_F(KvmSpace, G9MapZapAndDemotionCostExactlyOneCallForEachSlotAndEvent) {
  using Calls = std::map<std::string, uint64_t, std::less<>>;
  const auto other = space->Map(Of({BarAt(0x9000)})).value();
  IoEvent event = EventAt(0x5000);
  event.eventfd = kvm->event.get();
  failpoints::StartCensus();
  auto mapping = space->Map(Of({BarAt(0x1000), BarAt(0x2000)}, {event})).value();
  EXPECT_EQ(failpoints::Census(),
            (Calls{{"KVM_SET_USER_MEMORY_REGION", 2}, {"KVM_IOEVENTFD", 1}}));
  failpoints::StartCensus();
  auto claim = space->MapOrClaim(Of({BarAt(0x1000)})).value();
  EXPECT_FALSE(space->Map(Of({BarAt(0x1000)})));
  EXPECT_TRUE(space->Find(Gpa(0x1000)));
  EXPECT_THAT(failpoints::Census(), IsEmpty());
  Mapping* const both[] = {&mapping, &claim};
  space->Zap(both);
  EXPECT_EQ(failpoints::Census(),
            (Calls{{"KVM_SET_USER_MEMORY_REGION", 2}, {"KVM_IOEVENTFD", 1}}));
  failpoints::StartCensus();
  space->Zap(both);
  EXPECT_THAT(failpoints::Census(), IsEmpty());
  { const auto demotion = space->DemoteBars(); }
  EXPECT_EQ(failpoints::Census(), (Calls{{"KVM_SET_USER_MEMORY_REGION", 2}}));
}

// --- The sweep on KVM

class KvmWorld : public SweepWorld {
 public:
  AddressSpace& space() override { return space_; }
  RecordingDomain& domain(int index) override { return index == 0 ? a_ : b_; }
  const std::vector<std::string>& unsafe() const override { return unsafe_; }
  void Arm(const std::string& site, uint64_t n, uint64_t count) override {
    if (!site.starts_with("KVM_")) return recorder_.Fail(site, n, count);
    EXPECT_TRUE(failpoints::Arm(fmt::format("{}#{}=EIO*{}", site, n, count)));
  }
  void Disarm() override {
    recorder_.Reset();
    failpoints::Reset();
    failpoints::StartCensus();
  }
  std::map<std::string, uint64_t> Sites() const override {
    std::map<std::string, uint64_t> sites = recorder_.census();
    for (const auto& [name, calls] : failpoints::Census()) sites[name] = calls;
    return sites;
  }
  uint64_t Fired() const override { return recorder_.fired() + failpoints::Fired(); }
  // What the table says, if KVM agrees: it has those slots, and nothing between them.
  std::set<std::string> Slots() override {
    std::set<std::string> slots;
    std::set<GuestRange> ranges;
    for (const Memslot& slot : kvm_.table->Slots()) ranges.insert(slot.range);
    Gpa free;
    for (const GuestRange& range : ranges) {
      slots.insert(fmt::format("slot {}", range.start));
      EXPECT_TRUE(kvm_.HasSlot(range.start)) << fmt::format("{}", range);
      ExpectFree(free, range.start);
      free = range.end();
    }
    ExpectFree(free, Gpa(4 * kMiB));
    for (auto& [address, there] : events_) {
      there = kvm_.HasEvent(address, there);
      if (there) slots.insert(fmt::format("event {}", address));
    }
    return slots;
  }
  int eventfd() const override { return kvm_.event.get(); }
  void Drop() override {
    failpoints::Reset();
    if (unsafe_.empty()) return;
    a_.Drop();
    b_.Drop();
  }

 private:
  void ExpectFree(Gpa start, Gpa end) const {
    EXPECT_TRUE(start == end || !kvm_.HasSlot({start, end - start})) << fmt::format("{}", start);
  }

  KvmVm kvm_;
  // All that the paths place, and whether it was there last time.
  std::map<Gpa, bool> events_{
      {Gpa(0x2000), false}, {Gpa(0x2008), false}, {Gpa(0x7000), false}, {Gpa(0x7008), false}};
  Recorder recorder_;
  RecordingDomain a_{recorder_, "A"};
  RecordingDomain b_{recorder_, "B"};
  std::vector<std::string> unsafe_;
  AddressSpace space_{*kvm_.table, {.on_unsafe = [this](const Error& error) {
                                     unsafe_.push_back(error.message());
                                   }}};
};

TEST(KvmFailureSweep, G3G5WhicheverKvmCallFailsTheBooksStayTrueAndAFailedChangeChangesNothing) {
  NEED_KVM();
  log::SetLevel(LogLevel::kError);
  // What fails in domains is failure_sweep_test.cc's; an ioeventfd takes KVM 10 ms.
  const SweepCount count =
      Sweep([] { return std::make_unique<KvmWorld>(); }, {1, Recorder::kForever}, "KVM_");
  log::SetLevel(LogLevel::kInfo);
  std::cout << "sweep over KVM: " << count.ToString() << "\n";
  EXPECT_EQ(count.sites, (std::set<std::string>{"KVM_IOEVENTFD", "KVM_SET_USER_MEMORY_REGION"}));
}

}  // namespace
}  // namespace crossbar::testing
