#include "vmm/fault_finder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "memory/testing/heart.h"

namespace crossbar {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using testing::Bar;
using testing::Heart;
using testing::Of;
using testing::Ram;

class Owner : public BarOwner {
 public:
  std::string bar_owner_name() const override { return "owner"; }
  void OnVanished(Gpa address) override { vanished.push_back(address.value()); }
  std::vector<uint64_t> vanished;
};

// RAM at 0, a BAR at 0x10000 and one at 0x20000.
struct FaultFinderTest : ::testing::Test {
  bool Mapped(uint64_t address) {
    for (const Memslot& slot : heart.slots.Slots()) {
      if (slot.range.Contains(Gpa(address))) return true;
    }
    return false;
  }

  Owner first, second;
  Heart heart;
  AddressSpace::Mapping ram = heart.Map(Of({Ram(0, 0x4000)}));
  AddressSpace::Mapping bar = heart.Map(Of({Bar(0x10000, 0x2000, &first)}));
  AddressSpace::Mapping other = heart.Map(Of({Bar(0x20000, 0x1000, &second)}));
  FaultFinder finder{heart.space};
};

TEST_F(FaultFinderTest, TakesBarsAwayUntilTheAccessThatFailedTraps) {
  EXPECT_FALSE(finder.searching());
  EXPECT_TRUE(finder.OnRunFault());
  EXPECT_TRUE(finder.searching());
  EXPECT_FALSE(Mapped(0x10000) || Mapped(0x20000));
  EXPECT_TRUE(Mapped(0)) << "RAM stays";
  finder.OnMmio(Gpa(0x11008));
  EXPECT_THAT(first.vanished, ElementsAre(0x11008));
  EXPECT_TRUE(second.vanished.empty());
  EXPECT_FALSE(finder.searching());
  EXPECT_TRUE(Mapped(0x10000) && Mapped(0x20000)) << "this owner did not zap";
}

TEST_F(FaultFinderTest, EndsTheSearchAtAnyTrap) {
  EXPECT_TRUE(finder.OnRunFault());
  finder.OnMmio(Gpa(0x30000));  // an interrupt handler's access to some device
  EXPECT_FALSE(finder.searching());
  EXPECT_TRUE(Mapped(0x10000) && Mapped(0x20000));
  EXPECT_TRUE(first.vanished.empty() && second.vanished.empty());
  EXPECT_TRUE(finder.OnRunFault()) << "what is still wrong fails again";
  EXPECT_TRUE(finder.searching());
}

TEST_F(FaultFinderTest, GivesUpWhereNoBarIsEverFound) {
  int tries = 0;
  while (finder.OnRunFault() && tries < 1000) ++tries;
  EXPECT_GT(tries, 1);
  EXPECT_LT(tries, 100);
}

// Another vCPU found the BAR first: here the access traps where no BAR is any more, which is no sign of
// trouble with RAM, however often in the life of a VM.
TEST_F(FaultFinderTest, SearchesThatComeLateAreNotCountedForEver) {
  FaultFinder patient{heart.space, {.quiet = 0ms}};
  for (int i = 0; i < 1000; ++i) {
    std::this_thread::sleep_for(1us);
    ASSERT_TRUE(patient.OnRunFault());
    patient.OnMmio(Gpa(0x30000));
  }
}

// RAM that fails, while interrupt handlers touch devices: the search must end all the same.
TEST_F(FaultFinderTest, GivesUpAfterATimeWhateverElseTraps) {
  FaultFinder brief{heart.space, {.search = 50ms}};
  const auto start = std::chrono::steady_clock::now();
  while (brief.OnRunFault() && std::chrono::steady_clock::now() < start + 10s)
    brief.OnMmio(Gpa(0x30000));
  EXPECT_GE(std::chrono::steady_clock::now(), start + 50ms);
  EXPECT_LT(std::chrono::steady_clock::now(), start + 5s);
}

// An interrupt leads the vCPU into HLT, and nothing of its traps any more.
TEST_F(FaultFinderTest, BarsComeBackAfterAWhileWhereNothingTraps) {
  FaultFinder brief{heart.space, {.demotion = 20ms}};
  ASSERT_TRUE(brief.OnRunFault());
  EXPECT_FALSE(Mapped(0x10000));
  for (int i = 0; i < 5000 && !Mapped(0x20000); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(Mapped(0x10000) && Mapped(0x20000));
  EXPECT_FALSE(brief.searching());
  EXPECT_TRUE(brief.OnRunFault());
  EXPECT_TRUE(brief.searching());
}

TEST_F(FaultFinderTest, SearchesAlsoWhereTheHostHasNoThreadForTheTime) {
  ASSERT_TRUE(failpoints::Arm("pthread_create=EAGAIN"));
  EXPECT_TRUE(finder.OnRunFault());
  EXPECT_EQ(failpoints::Fired(), 1u);
  failpoints::Reset();
  EXPECT_TRUE(finder.searching());
  finder.OnMmio(Gpa(0x11008));
  EXPECT_THAT(first.vanished, ElementsAre(0x11008));
  EXPECT_TRUE(Mapped(0x10000) && Mapped(0x20000));
}

TEST_F(FaultFinderTest, StartsCountingAnewOnceABarWasFound) {
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(finder.OnRunFault());
    finder.OnMmio(Gpa(0x10000));
  }
  EXPECT_EQ(first.vanished.size(), 1000u);
}

}  // namespace
}  // namespace crossbar
