#include "vmm/fault_finder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "memory/testing/heart.h"

namespace crossbar {
namespace {

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

TEST_F(FaultFinderTest, StartsCountingAnewOnceABarWasFound) {
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(finder.OnRunFault());
    finder.OnMmio(Gpa(0x10000));
  }
  EXPECT_EQ(first.vanished.size(), 1000u);
}

}  // namespace
}  // namespace crossbar
