#include "devices/passthrough/bars.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "devices/passthrough/testing/rig.h"
#include "memory/testing/full_stderr.h"

namespace crossbar::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// BAR 0: a page, 32-bit. BAR 2: 16 pages, 64-bit, the third has the MSI-X table. BAR 4: 256 bytes, 32-bit.
// BAR 5: 32 ports.
class BarsTest : public ::testing::Test, public PassthroughRig {
 protected:
  void SetUp() override { domain_ = heart.Join(heart.a); }

  void StartDecoding(PassthroughFunction::Settings settings = {.id = "dev"}) {
    Start(std::move(settings));
    Assign();
    Decode();
  }
  void PutWide(uint64_t address) {
    Write(Bar(2), 4, static_cast<uint32_t>(address));
    Write(Bar(3), 4, static_cast<uint32_t>(address >> 32));
  }
  // Which BAR is mapped there; -1: none.
  int MappedAt(uint64_t address) const {
    const auto place = heart.space.Find(Gpa(address));
    return place ? place->backing.bar : -1;
  }
  uint64_t Trapped(uint64_t address, unsigned size = 4) {
    for (const auto& window : windows.memory)
      if (window->Contains(address, size)) return window->Read(address - window->start(), size);
    ADD_FAILURE() << "no window";
    return 0;
  }
  AddressSpace::DomainHandle domain_;
};

TEST_F(BarsTest, TheLargestBarsTakeBothHalvesOfTheirRegister) {
  device.regions[2] = {uint64_t{1} << 40, true, true, {}};
  Start();
  Write(Bar(2), 4, ~0u);
  Write(Bar(3), 4, ~0u);
  EXPECT_EQ(Read(Bar(2), 4), 0xcu);
  EXPECT_EQ(Read(Bar(3), 4), 0xffffff00u);
}

TEST_F(BarsTest, TwoSmallBarsShareAPageAndBothTrap) {
  device.Region(1, 0x80, 0, true);
  StartDecoding();
  device.memory[1][0] = 0x11;
  device.memory[4][0] = 0x44;
  heart.recorder.Take();
  EXPECT_THAT(Write(Bar(1), 4, kWindow32 + 0x5000), IsEmpty());
  EXPECT_THAT(Write(Bar(4), 4, kWindow32 + 0x5100), IsEmpty()) << "neither has a slot nor DMA";
  EXPECT_EQ(Trapped(kWindow32 + 0x5000, 1), 0x11u);
  EXPECT_EQ(Trapped(kWindow32 + 0x5100, 1), 0x44u);
  EXPECT_EQ(Trapped(kWindow32 + 0x5080, 1), 0xffu) << "between them is nobody";
}

TEST_F(BarsTest, ABarThatCrossesTheEndOfItsWindowIsNowhere) {
  // The windows end where a BAR cannot cross: this one does.
  windows.memory.push_back(std::make_shared<PciWindow>(0xe0000000, 0x8000));
  StartDecoding();
  PutWide(0xe0000000);
  EXPECT_EQ(MappedAt(0xe0000000), -1);
  EXPECT_EQ(Trapped(0xe0002000), 0xffffffffu);
  PutWide(0);
  EXPECT_EQ(MappedAt(0), -1) << "RAM is there";
  PutWide(kWindow64);
  EXPECT_EQ(MappedAt(kWindow64), 2);
}

TEST_F(BarsTest, HalvesWrittenApartLeaveWhatIsInBetweenAlone) {
  StartDecoding();
  // Its lower half is that of BAR 0 already; the upper half makes it so.
  Write(Bar(2), 4, kWindow32);
  EXPECT_EQ(MappedAt(kWindow32), 0);
  EXPECT_EQ(MappedAt(kWindow64 + kWindow32), 2);
  EXPECT_EQ(MappedAt(kWindow64), -1);
  Write(Bar(3), 4, 0);
  EXPECT_EQ(MappedAt(kWindow32), 0) << "a claim takes nothing away";
  EXPECT_EQ(MappedAt(kWindow64 + kWindow32), -1);
  EXPECT_EQ(MappedAt(kWindow32 + 0x1000), -1) << "all or nothing of it";
  PutWide(kWindow64);
  EXPECT_EQ(MappedAt(kWindow64), 2);
  EXPECT_EQ(MappedAt(kWindow32), 0);
}

TEST_F(BarsTest, AClaimThatMovesOnIsPlacedWhereItIsAndNotWhereItWas) {
  StartDecoding();
  PutWide(kWindow32);
  PutWide(kWindow64 + 0x100000);
  EXPECT_EQ(MappedAt(kWindow64 + 0x100000), 2);
  Write(Bar(0), 4, kWindow32 + 0x100000);
  EXPECT_EQ(MappedAt(kWindow32), -1);
  EXPECT_EQ(heart.slots.Slots().size(), 3u);
}

TEST_F(BarsTest, AClaimEndsWithDecode) {
  StartDecoding();
  PutWide(kWindow32);
  Write(PCI_COMMAND, 2, 0);
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_TRUE(heart.a.Mapped().empty());
  Write(Bar(0), 4, kWindow32 + 0x100000);
  Decode();
  EXPECT_EQ(MappedAt(kWindow32), 2) << "nobody is in its way any more";
}

TEST_F(BarsTest, ABarOfAnotherFunctionWaitsForTheFirstToLeave) {
  StartDecoding();
  FakeDevice other{heart.recorder};
  other.interrupts[VFIO_PCI_INTX_IRQ_INDEX] = {};  // its line is taken
  auto made = PassthroughFunction::Create(std::make_unique<FakeBackend>(other), {.id = "other"}, Around());
  ASSERT_TRUE(made) << made.error().message();
  const auto second = *made;
  second->WriteConfig(Bar(0), 4, kWindow32);
  second->WriteConfig(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
  const auto owner = [&] { return heart.space.Find(Gpa(kWindow32))->backing.owner->bar_owner_name(); };
  EXPECT_EQ(owner(), "dev");
  heart.recorder.Take();
  Write(PCI_COMMAND, 2, 0);
  EXPECT_EQ(owner(), "other");
  Decode();
  EXPECT_EQ(owner(), "other") << "who comes back waits in turn";
  second->Close();
  EXPECT_EQ(owner(), "dev");
}

TEST_F(BarsTest, WhoCameFirstIsTheSameInTheWindowWhenTwoComeAtOnce) {
  Start();
  device.memory[0].assign(0x1000, 0x10);
  FakeDevice other{heart.recorder};
  other.interrupts[VFIO_PCI_INTX_IRQ_INDEX] = {};  // its line is taken
  other.memory[4].assign(0x100, 0x44);
  auto second = PassthroughFunction::Create(std::make_unique<FakeBackend>(other), {.id = "other"}, Around());
  ASSERT_TRUE(second) << second.error().message();
  Write(Bar(0), 4, kWindow32);
  (*second)->WriteConfig(Bar(4), 4, kWindow32);
  {
    // The first is in the AddressSpace, and is held up by the line about its refusal before it is in the window.
    heart.a.refuse = [](GuestRange, const Backing&) { return "full"; };
    FullStderr full;
    auto first = std::async(std::launch::async, [&] { Decode(); });
    while (MappedAt(kWindow32) != 0) std::this_thread::yield();
    (*second)->WriteConfig(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    EXPECT_EQ(Trapped(kWindow32, 1), 0x44u) << "nothing was held up";
    full.Drain();
  }
  EXPECT_EQ(Trapped(kWindow32, 1), 0x10u);
  (*second)->Close();
}

TEST_F(BarsTest, ATrappedBarBelowAMappedOneAnswersOnceThatHasGone) {
  StartDecoding();
  device.memory[4][0] = 0x44;
  EXPECT_THAT(Write(Bar(4), 4, kWindow32 + 0x100), IsEmpty());
  EXPECT_EQ(MappedAt(kWindow32), 0) << "who came first stays";
  Write(Bar(0), 4, kWindow32 + 0x100000);
  EXPECT_EQ(MappedAt(kWindow32), -1);
  EXPECT_EQ(Trapped(kWindow32 + 0x100, 1), 0x44u);
}

TEST_F(BarsTest, ATrappedBarsIoeventfdsComeAndGoWithIt) {
  device.io_events[4] = {{Gpa(0x40), 4, std::nullopt, -1}};
  StartDecoding();
  heart.recorder.Take();
  EXPECT_THAT(Write(Bar(4), 4, kWindow32 + 0x5000), ElementsAre("event+ 0xc0005040"));
  EXPECT_THAT(Write(Bar(4), 4, kWindow32), ElementsAre("event- 0xc0005040")) << "a claim has none";
  EXPECT_THAT(Write(Bar(0), 4, kWindow32 + 0x100000), Contains("event+ 0xc0000040"));
  EXPECT_THAT(Write(PCI_COMMAND, 2, 0), Contains("event- 0xc0000040"));
}

TEST_F(BarsTest, G4AMappedBarWaitsForTheTrappedOnesThatCameFirst) {
  device.Region(1, 0x80, 0, true);
  StartDecoding();
  device.memory[0].assign(0x1000, 0x10);
  device.memory[1][0] = 0x11;
  device.memory[4][0] = 0x44;
  const uint32_t page = kWindow32 + 0x5000;
  Write(Bar(1), 4, page);
  Write(Bar(4), 4, page + 0x100);
  EXPECT_THAT(Write(Bar(0), 4, page), ElementsAre("dma- start A 0xc0000000", "dma- done A 0xc0000000",
                                                  "slot- 0xc0000000"));
  EXPECT_EQ(MappedAt(page), -1);
  EXPECT_EQ(Trapped(page, 1), 0x11u);
  EXPECT_EQ(Trapped(page + 0x100, 1), 0x44u);
  EXPECT_EQ(Trapped(page + 0x80, 1), 0x10u) << "between them it answers, trapped";
  Write(Bar(1), 4, 0);
  EXPECT_EQ(MappedAt(page), -1) << "one is still there";
  EXPECT_EQ(Trapped(page, 1), 0x10u);
  Write(Bar(4), 4, 0);
  EXPECT_EQ(MappedAt(page), 0);
}

TEST_F(BarsTest, AMappedBarLeavesAnMsixTableThatCameFirstItsPage) {
  StartDecoding();
  Write(Bar(0), 4, kWindow32 + 0x100000);
  PutWide(kWindow32);
  device.memory[0].assign(0x1000, 0x10);
  Write(Bar(0), 4, kWindow32 + 0x2000);
  EXPECT_EQ(MappedAt(kWindow32 + 0x2000), -1);
  EXPECT_NE(Trapped(kWindow32 + 0x2000), 0x10101010u) << "the vectors are there";
  PutWide(kWindow64);
  EXPECT_EQ(MappedAt(kWindow32 + 0x2000), 0);
}

TEST_F(BarsTest, WhoCameFirstIsNextWhetherMappedOrTrapped) {
  StartDecoding();
  device.memory[4][0] = 0x44;
  Write(Bar(4), 4, kWindow32);
  PutWide(kWindow32);
  EXPECT_EQ(MappedAt(kWindow32), 0);
  Write(Bar(0), 4, kWindow32 + 0x100000);
  EXPECT_EQ(MappedAt(kWindow32), -1) << "the trapped one is next";
  EXPECT_EQ(Trapped(kWindow32, 1), 0x44u);
  Write(Bar(4), 4, 0);
  EXPECT_EQ(MappedAt(kWindow32), 2);
}

TEST_F(BarsTest, AClaimKeepsWhatItAnswersTrapped) {
  device.Region(1, 0x1000, 0, true);
  StartDecoding();
  device.memory[2].assign(0x10000, 0x22);
  PutWide(kWindow32);
  EXPECT_EQ(Trapped(kWindow32 + 0x1000), 0x22222222u);
  Write(Bar(1), 4, kWindow32 + 0x1000);
  EXPECT_EQ(MappedAt(kWindow32 + 0x1000), -1);
  EXPECT_EQ(Trapped(kWindow32 + 0x1000), 0x22222222u) << "who comes third takes it from nobody";
  Write(Bar(0), 4, 0);
  EXPECT_EQ(MappedAt(kWindow32 + 0x1000), 2);
  PutWide(kWindow64);
  EXPECT_EQ(MappedAt(kWindow32 + 0x1000), 1);
}

TEST_F(BarsTest, ABarThatKvmDoesNotTakeKeepsItsAddressesTrapped) {
  StartDecoding();
  device.memory[0].assign(0x1000, 0x10);
  const uint32_t place = kWindow32 + 0x10000;
  heart.recorder.Fail("slot+");
  Write(Bar(0), 4, place);
  EXPECT_EQ(MappedAt(place), -1);
  PutWide(place);
  EXPECT_EQ(MappedAt(place), -1) << "BAR 0 is there";
  EXPECT_EQ(Trapped(place), 0x10101010u);
  Write(Bar(0), 4, kWindow32);
  EXPECT_EQ(MappedAt(kWindow32), 0);
  EXPECT_EQ(MappedAt(place), 2);
}

TEST_F(BarsTest, PortsMoveWithTheirRegisterAndKnowNoMemoryDecode) {
  Start();
  device.memory[5][4] = 0x77;
  Write(Bar(5), 4, 0x1000);
  Write(PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
  EXPECT_EQ(windows.ports->Read(4, 1), 0x77u);
  Write(Bar(5), 4, 0x1f0);
  EXPECT_EQ(windows.ports->Read(4, 1), 0xffu) << "below the window nobody looks";
  Write(Bar(5), 4, 0x1020);
  EXPECT_EQ(windows.ports->Read(0x24, 1), 0x77u);
  EXPECT_EQ(windows.ports->Read(4, 1), 0xffu);
}

TEST_F(BarsTest, ItsOwnRomIsReadFromTheDevice) {
  device.regions[VFIO_PCI_ROM_REGION_INDEX] = {0x1000, true, false, {}};
  device.memory[VFIO_PCI_ROM_REGION_INDEX].assign(0x1000, 0x5a);
  StartDecoding();
  Write(PCI_ROM_ADDRESS, 4, kWindow32 + 0x300000);
  EXPECT_EQ(Trapped(kWindow32 + 0x300000), 0xffffffffu) << "not enabled";
  Write(PCI_ROM_ADDRESS, 4, kWindow32 + 0x300000 + PCI_ROM_ADDRESS_ENABLE);
  EXPECT_EQ(Trapped(kWindow32 + 0x300000), 0x5a5a5a5au);
  Write(PCI_COMMAND, 2, 0);
  EXPECT_EQ(Trapped(kWindow32 + 0x300000), 0xffffffffu);
}

TEST_F(BarsTest, RomOffLeavesNone) {
  device.regions[VFIO_PCI_ROM_REGION_INDEX] = {0x1000, true, false, {}};
  Start({.id = "dev", .rom = false});
  Write(PCI_ROM_ADDRESS, 4, ~0u);
  EXPECT_EQ(Read(PCI_ROM_ADDRESS, 4), 0u);
}

TEST_F(BarsTest, ABarMapsAllButThePagesOfTheMsixTable) {
  StartDecoding();
  EXPECT_EQ(MappedAt(kWindow64 + 0x1000), 2);
  EXPECT_EQ(MappedAt(kWindow64 + 0x2000), -1);
  EXPECT_EQ(MappedAt(kWindow64 + 0x3000), 2);
  EXPECT_EQ(MappedAt(kWindow64 + 0xf000), 2);
}

}  // namespace
}  // namespace crossbar::testing
