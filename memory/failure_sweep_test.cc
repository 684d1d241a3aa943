// Every call that Map, Zap, AddDomain and Demotion make of fakes fails once; and every pair of
// calls.
#include <gtest/gtest.h>

#include <iostream>

#include "base/log.h"
#include "memory/testing/sweep.h"

namespace crossbar::testing {
namespace {

class FakeWorld : public SweepWorld {
 public:
  AddressSpace& space() override { return heart_.space; }
  RecordingDomain& domain(int index) override { return index == 0 ? heart_.a : heart_.b; }
  const std::vector<std::string>& unsafe() const override { return heart_.unsafe; }
  void Arm(const std::string& site, uint64_t n, uint64_t count) override {
    heart_.recorder.Fail(site, n, count);
  }
  void Disarm() override { heart_.recorder.Reset(); }
  std::map<std::string, uint64_t> Sites() const override { return heart_.recorder.census(); }
  uint64_t Fired() const override { return heart_.recorder.fired(); }
  std::set<std::string> Slots() override {
    std::set<std::string> slots;
    for (const Memslot& slot : heart_.slots.Slots())
      slots.insert(fmt::format("slot {}", slot.range.start));
    for (const Gpa address : heart_.slots.EventAddresses())
      slots.insert(fmt::format("event {}", address));
    return slots;
  }
  void Drop() override {
    if (heart_.unsafe.empty()) return;
    heart_.slots.Drop();
    heart_.a.Drop();
    heart_.b.Drop();
  }

 private:
  Heart heart_;
};

std::unique_ptr<SweepWorld> MakeFakeWorld() { return std::make_unique<FakeWorld>(); }

struct FailureSweep : ::testing::Test {
  FailureSweep() { log::SetLevel(LogLevel::kError); }
  ~FailureSweep() override { log::SetLevel(LogLevel::kInfo); }
};

TEST_F(FailureSweep, G3G5WhicheverCallFailsTheBooksStayTrueAndAFailedChangeChangesNothing) {
  const SweepCount count = Sweep(MakeFakeWorld, {1, 2, Recorder::kForever});
  std::cout << "sweep over fakes: " << count.ToString() << "\n";
  EXPECT_EQ(count.sites.size(), 6u);
  EXPECT_GT(count.refused, 0u);
  EXPECT_GT(count.emergencies, 0u);
}

// A second fault while the first is being undone. Two failures are within the bound of tries.
TEST_F(FailureSweep, G3G5WhicheverTwoCallsFailTheBooksStayTrueAndThereIsNoEmergency) {
  SweepCount count;
  for (const SweepPath& path : SweepPaths()) {
    SCOPED_TRACE(path.name);
    ++count.paths;
    bool first_fired = true;
    for (uint64_t n = 1; first_fired; ++n) {
      ASSERT_LT(n, 1000u);
      bool both_fired = true;
      for (uint64_t m = n + 1; both_fired; ++m) {
        ASSERT_LT(m, 1000u);
        SCOPED_TRACE(fmt::format("calls {} and {}", n, m));
        both_fired = RunWithFaults(
            path, MakeFakeWorld,
            [&](SweepWorld& world) {
              world.Arm("", n, 1);
              world.Arm("", m, 1);
            },
            2, count);
        if (both_fired) ++count.occurrences;
      }
      first_fired = RunWithFaults(
          path, MakeFakeWorld, [&](SweepWorld& world) { world.Arm("", n, 1); }, 1, count);
    }
  }
  EXPECT_EQ(count.emergencies, 0u);
  EXPECT_GT(count.occurrences, 400u);
  std::cout << "sweep over pairs of faults: " << count.occurrences << " pairs fired, "
            << count.refused << " undone\n";
}

}  // namespace
}  // namespace crossbar::testing
