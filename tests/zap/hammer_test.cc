// The zap on real KVM: a guest hammers a memfd "BAR" from every vCPU and both rings while it is
// placed, taken away and moved. After a zap has returned the memory is overwritten: a stale access would
// show in the guest (a value that is neither the pattern nor all ones) or in the memory.
#include <gtest/gtest.h>
#include <linux/pci_regs.h>
#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <thread>

#include "base/failpoint.h"
#include "base/sys.h"
#include "memory/guarded_copy.h"
#include "tests/need_kvm.h"
#include "vmm/vm.h"

namespace crossbar {
namespace {

constexpr uint64_t kPattern = 0x5a5a'0000'0000'0000;  // as guests/hammer.cc has it
constexpr uint64_t kPoison = 0xdead'dead'dead'dead;
constexpr uint64_t kBarSize = 4 * kPageSize;
constexpr Gpa kBar(0xc000'0000);
constexpr Gpa kOther(0xc100'0000);
constexpr Gpa kControl(0xd000'0000);

// A few seconds' worth; scripts/test --full sets 100000.
unsigned Cycles() {
  const char* const text = std::getenv("CROSSBAR_HAMMER_CYCLES");
  return text != nullptr ? static_cast<unsigned>(std::atoi(text)) : 2000;
}

// Reads 0 until it is time to end.
class ControlRegister final : public BusDevice {
 public:
  uint64_t Read(uint64_t, unsigned) override { return stop_.load() ? 1 : 0; }
  void Write(uint64_t, unsigned, uint64_t) override {}
  void Stop() { stop_ = true; }

 private:
  std::atomic<bool> stop_ = false;
};

// The memory of a BAR: the pattern, and a last page that the guest writes to.
class BarMemory {
 public:
  BarMemory() {
    file_ = sys::MemfdCreate("bar", 0).value();
    EXPECT_TRUE(sys::Ftruncate(file_.get(), kBarSize));
    mapping_ = HostMapping::Map(file_.get(), 0, kBarSize, PROT_READ | PROT_WRITE).value();
    Fill(kPattern, true);
  }

  void Fill(uint64_t value, bool add_offset) {
    const auto words = Words();
    for (size_t i = 0; i < words.size(); ++i)
      __atomic_store_n(&words[i], value + (add_offset ? i * 8 : 0), __ATOMIC_RELAXED);
  }
  bool Holds(uint64_t value) const {
    for (const uint64_t& word : Words()) {
      if (__atomic_load_n(&word, __ATOMIC_RELAXED) != value) return false;
    }
    return true;
  }
  // The memory behind the BAR goes away without a word: touching it is a SIGBUS from now on.
  void Vanish() { EXPECT_TRUE(sys::Ftruncate(file_.get(), 0)); }

  AddressSpace::Placement At(Gpa address, BarOwner* owner = nullptr) const {
    Backing backing;
    backing.kind = Backing::Kind::kBar;
    backing.host = mapping_.address();
    backing.owner = owner;
    return {{{{address, kBarSize}, backing}}, {}};
  }
  Hva address() const { return mapping_.address(); }

 private:
  std::span<uint64_t> Words() const {
    return {reinterpret_cast<uint64_t*>(mapping_.address().pointer()), kBarSize / 8};
  }
  Fd file_;
  HostMapping mapping_;
};

class HammerTest : public ::testing::Test {
 protected:
  void Make(std::string extra, unsigned cpus = 2) {
    options_.kernel = CROSSBAR_GUESTS "/hammer.elf";
    options_.memory_bytes = 64 * kMiB;
    options_.cpus = cpus;
    options_.console = std::getenv("CROSSBAR_HAMMER_CONSOLE") != nullptr ? "stdio" : "none";
    options_.command_line =
        fmt::format("bar={} other={} size={} control={} {}", kBar, kOther, kBarSize, kControl, extra);
    Result<std::unique_ptr<Vm>> vm = Vm::Create(options_, phases_);
    ASSERT_TRUE(vm) << vm.error().ToString();
    vm_ = *std::move(vm);
    control_ = std::make_shared<ControlRegister>();
    ASSERT_TRUE(vm_->mmio().Add(kControl.value(), kPageSize, control_));
  }

  // Runs `work` beside the guest, then lets the guest end.
  template <typename Work>
  void RunWith(Work work) {
    std::thread thread([&] {
      work();
      control_->Stop();
    });
    const Result<StopRequest> end = vm_->Run();
    thread.join();
    ASSERT_TRUE(end) << end.error().ToString();
    EXPECT_EQ(end->status, 1) << end->detail;
  }

  RunOptions options_;
  StartupPhases phases_;
  std::unique_ptr<Vm> vm_;
  std::shared_ptr<ControlRegister> control_;
};

TEST_F(HammerTest, G7AfterTheZapNoGuestAccessReachesTheBar) {
  NEED_KVM();
  ASSERT_NO_FATAL_FAILURE(Make(fmt::format("expect={}", Cycles() / 4), 4));
  BarMemory bar;
  unsigned stale = 0;
  RunWith([&] {
    for (unsigned i = 0; i < Cycles(); ++i) {
      Result<AddressSpace::Mapping> mapping =
          vm_->address_space().Map(bar.At(i % 3 == 0 ? kOther : kBar));
      ASSERT_TRUE(mapping) << mapping.error().ToString();
      if (i % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i % 512));
      *mapping = {};
      // Acknowledged: from here on nothing of the guest's may arrive.
      bar.Fill(kPoison, false);
      if (i % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
      if (!bar.Holds(kPoison)) ++stale;
      bar.Fill(kPattern, true);
    }
  });
  EXPECT_EQ(stale, 0u) << "writes that arrived after the zap";
  fmt::print("{} cycles of map and zap under 4 vCPUs, {} stale writes\n", Cycles(), stale);
}

// --- G5 on the real KVM: a slot that cannot be deleted ends the VM

// A function that masters the bus.
class Master : public PciFunction {
 public:
  uint32_t ReadConfig(uint16_t offset, unsigned size) override {
    return offset == PCI_COMMAND && size == 2 ? command_.load() : 0;
  }
  void WriteConfig(uint16_t offset, unsigned, uint32_t value) override {
    if (offset == PCI_COMMAND) command_ = value;
  }
  void Reset() override {}
  uint32_t command() const { return command_; }

 private:
  std::atomic<uint32_t> command_ = PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY;
};

TEST_F(HammerTest, G5ASlotThatCannotBeDeletedStopsAllBusMastersAndThenTheVmWithStatus10) {
  NEED_KVM();
  ASSERT_NO_FATAL_FAILURE(Make("expect=0"));
  const auto master = std::make_shared<Master>();
  ASSERT_TRUE(vm_->pci().root_bus().Add({5, 0}, master));
  BarMemory bar;
  Result<AddressSpace::Mapping> mapping = vm_->address_space().Map(bar.At(kBar));
  ASSERT_TRUE(mapping) << mapping.error().ToString();
  std::thread zap([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_TRUE(failpoints::Arm("KVM_SET_USER_MEMORY_REGION=EIO*3"));
    *mapping = {};
    failpoints::Reset();
  });
  const Result<StopRequest> end = vm_->Run();
  zap.join();
  ASSERT_TRUE(end) << end.error().ToString();
  EXPECT_EQ(end->reason, StopRequest::Reason::kUnsafe);
  EXPECT_EQ(end->status, 10) << end->detail;
  EXPECT_EQ(master->command(), uint32_t{PCI_COMMAND_MEMORY});
}

// A BAR as a device has it: its trap handler is under the slot, and it notices when it is lost.
class TrappedBar final : public BusDevice, public BarOwner {
 public:
  TrappedBar(Vm& vm, BarMemory& memory)
      : space_(vm.address_space()), slots_(vm.memslots()), memory_(memory) {}

  Result<> Place(Gpa address) {
    ExclusiveLock lock(access_);
    mapping_ = TRY(space_.Map(memory_.At(address, this)));
    return {};
  }
  void Remove() {
    ExclusiveLock lock(access_);
    mapping_ = {};
  }

  uint64_t Read(uint64_t offset, unsigned size) override {
    uint64_t value = 0;
    if (Access(offset, [&](Hva at) {
          return GuardedRead(at, std::as_writable_bytes(std::span(&value, 1)).first(size));
        }))
      return value;
    return AllOnes(size);
  }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    Access(offset, [&](Hva at) {
      return GuardedWrite(at, std::as_bytes(std::span(&value, 1)).first(size));
    });
  }

  std::string bar_owner_name() const override { return "memory"; }
  void OnVanished(Gpa) override {
    ++told_;
    std::byte probe{};
    if (GuardedRead(memory_.address(), {&probe, 1})) return;
    Lose();
  }

  bool lost() const { return lost_; }
  unsigned told() const { return told_; }
  // Accesses that trapped although a slot was there.
  unsigned trapped_at_a_slot() const { return trapped_at_a_slot_; }

 private:
  template <typename Copy>
  bool Access(uint64_t offset, Copy copy) {
    {
      SharedLock lock(access_);
      if (lost_ || !mapping_.live()) return false;
      if (copy(memory_.address() + offset)) return true;
      for (const Memslot& slot : slots_.Slots())
        if (slot.host == memory_.address()) ++trapped_at_a_slot_;
    }
    Lose();
    return false;
  }
  void Lose() {
    ExclusiveLock lock(access_);
    lost_ = true;
    mapping_ = {};
  }

  AddressSpace& space_;
  const KvmMemslotTable& slots_;
  BarMemory& memory_;
  SharedMutex access_;
  AddressSpace::Mapping mapping_ GUARDED_BY(access_);
  std::atomic<bool> lost_ = false;
  std::atomic<unsigned> told_ = 0;
  std::atomic<unsigned> trapped_at_a_slot_ = 0;
};

// Two BARs, of which the memory of one goes away while the guest uses both.
class VanishTest : public HammerTest {
 protected:
  struct Found {
    unsigned by_search = 0;  // the search after EFAULT named the BAR
    unsigned by_trap = 0;    // an access trapped although it has a slot
  };
  Found Vanish(const std::string& extra, unsigned cpus) {
    Make("expect=1000 vanish " + extra, cpus);
    if (HasFatalFailure()) return {};
    BarMemory memory;
    BarMemory other_memory;
    const auto bar = std::make_shared<TrappedBar>(*vm_, memory);
    const auto other = std::make_shared<TrappedBar>(*vm_, other_memory);
    EXPECT_TRUE(vm_->mmio().Add(kBar.value(), kBarSize, bar));
    EXPECT_TRUE(vm_->mmio().Add(kOther.value(), kBarSize, other));
    EXPECT_TRUE(bar->Place(kBar));
    EXPECT_TRUE(other->Place(kOther));
    RunWith([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      memory.Vanish();
      for (int i = 0; i < 1000 && !bar->lost(); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    });
    EXPECT_TRUE(bar->lost());
    EXPECT_FALSE(other->lost());
    EXPECT_TRUE(vm_->address_space().Find(kOther));
    EXPECT_FALSE(vm_->address_space().Find(kBar));
    EXPECT_TRUE(HasSlot(kOther)) << "the healthy BAR's slot did not come back";
    bar->Remove();
    other->Remove();
    return {bar->told(), bar->trapped_at_a_slot()};
  }

  bool HasSlot(Gpa start) const {
    for (const Memslot& slot : vm_->memslots().Slots()) {
      if (slot.range.start == start) return true;
    }
    return false;
  }
};

// From ring 3 the access faults in the CPU, and KVM_RUN fails without saying where.
TEST_F(VanishTest, EfaultIsTracedToTheBarThatVanishedAndTheOthersStay) {
  NEED_KVM();
  EXPECT_EQ(Vanish("ring3", 1).by_search, 1u);
}

// Where KVM's emulator runs the access, it reports MMIO on a mapped address instead (x86.c,
// emulator_read_write_onepage); with two vCPUs both may happen.
TEST_F(VanishTest, MmioOnAMappedAddressIsTakenForTheSame) {
  NEED_KVM();
  const Found found = Vanish("", 2);
  if (HasFailure()) return;
  fmt::print("found by {} searches after EFAULT, {} traps at a slot\n", found.by_search,
             found.by_trap);
  if (found.by_trap == 0) {
    GTEST_SKIP() << "this KVM does not emulate the guest's accesses: it reported EFAULT, which the "
                    "test before is about";
  }
}

}  // namespace
}  // namespace crossbar
