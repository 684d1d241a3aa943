// A passed-through function behind a virtual root port: what the port's registers do to it, in which order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "devices/passthrough/function.h"
#include "devices/passthrough/testing/rig.h"
#include "devices/pci_root_port.h"

namespace crossbar::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr uint32_t kForward = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
constexpr uint32_t kClosed = 0x0000fff0;  // a window's base above its limit

class RootPortTest : public ::testing::Test, public PassthroughRig {
 protected:
  void SetUp() override {
    domain_ = heart.Join(heart.a);
    windows.above = &port;
    Start();
    ASSERT_TRUE(port.bus().Add({0, 0}, function));
    Assign();
  }
  void TearDown() override { function->Close(); }

  // BAR 0 is in the first MiB of the 32-bit window, BAR 2 in that of the 64-bit one.
  void Open() {
    port.WriteConfig(PCI_MEMORY_BASE, 4, kWindow32 | kWindow32 >> 16);
    port.WriteConfig(PCI_PREF_MEMORY_BASE, 4, 0);
    port.WriteConfig(PCI_PREF_BASE_UPPER32, 4, kWindow64 >> 32);
    port.WriteConfig(PCI_PREF_LIMIT_UPPER32, 4, kWindow64 >> 32);
    port.WriteConfig(PCI_COMMAND, 2, kForward);
  }
  // What the write made everybody do, in order.
  Events WritePort(uint16_t offset, unsigned size, uint32_t value) {
    heart.recorder.Take();
    port.WriteConfig(offset, size, value);
    return heart.recorder.Take();
  }
  void DecodeAndMaster() { Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER); }

  AddressSpace::DomainHandle domain_;
  PciRootPort port;
};

TEST_F(RootPortTest, NothingIsReachedThroughAPortThatForwardsNothing) {
  Decode();
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_EQ(windows.memory[0]->Read(0, 4), 0xffffffffu);
  Open();
  EXPECT_EQ(heart.slots.Slots().size(), 3u);
}

TEST_F(RootPortTest, G1ThePortThatForwardsAgainPutsAllBack) {
  Open();
  Decode();
  WritePort(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, kForward),
              ElementsAre("slot+ 0xc0000000", "dma+ A 0xc0000000", "slot+ 0x100000000",
                          "slot+ 0x100003000", "dma+ A 0x100000000", "dma+ A 0x100003000"));
}

TEST_F(RootPortTest, G2DecodeOffAtThePortTakesAllBelowInOneZap) {
  Open();
  Decode();
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, PCI_COMMAND_MASTER),
              ElementsAre("dma- start A 0xc0000000", "dma- start A 0x100000000", "dma- start A 0x100003000",
                          "dma- done A 0xc0000000", "dma- done A 0x100000000", "dma- done A 0x100003000",
                          "slot- 0x100003000", "slot- 0x100000000", "slot- 0xc0000000"));
  EXPECT_EQ(Read(PCI_COMMAND, 2), PCI_COMMAND_MEMORY) << "the device still decodes";
  const ZapNotification last = zaps.Recent().back();
  EXPECT_EQ(last.cause, ZapCause::kPortChange);
  EXPECT_EQ(last.pieces, 3u);
  EXPECT_LE(last.dma_out, last.slots_out);
  EXPECT_LE(last.slots_out, last.hardware_done);
}

TEST_F(RootPortTest, AWindowThatLeavesABarTakesThatBarAlone) {
  Open();
  Decode();
  EXPECT_THAT(WritePort(PCI_MEMORY_BASE, 4, kClosed),
              ElementsAre("dma- start A 0xc0000000", "dma- done A 0xc0000000", "slot- 0xc0000000"));
  EXPECT_TRUE(heart.Finds(kWindow64));
  // A byte of a register at a time, as 16 or 32 bits would.
  EXPECT_THAT(WritePort(PCI_PREF_BASE_UPPER32, 1, 2),
              ElementsAre("dma- start A 0x100000000", "dma- start A 0x100003000",
                          "dma- done A 0x100000000", "dma- done A 0x100003000", "slot- 0x100003000",
                          "slot- 0x100000000"));
  EXPECT_THAT(WritePort(PCI_PREF_BASE_UPPER32, 1, 1), Contains("dma+ A 0x100000000"));
}

TEST_F(RootPortTest, ABarBeyondTheWindowIsNotReached) {
  Open();
  Write(Bar(0), 4, kWindow32 + 0x100000);
  Write(Bar(2), 4, 0xf0000);
  Decode();
  EXPECT_FALSE(heart.Finds(kWindow32 + 0x100000));
  EXPECT_TRUE(heart.Finds(kWindow64 + 0xf0000)) << "the last 64 KiB of the window";
}

TEST_F(RootPortTest, G9WhatChangesNothingCostsNothing) {
  Open();
  Decode();
  const size_t before = zaps.Recent().size();
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, kForward), IsEmpty());
  EXPECT_THAT(WritePort(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_SERR), IsEmpty());
  EXPECT_THAT(WritePort(PCI_SECONDARY_BUS, 1, 7), IsEmpty());
  EXPECT_EQ(zaps.Recent().size(), before);
}

TEST_F(RootPortTest, G2ASecondaryBusResetZapsThenResetsAndTheGuestFindsResetValues) {
  Open();
  Write(FakeDevice::kMsix + 2, 2, PCI_MSIX_FLAGS_ENABLE);
  Decode();
  const Events events = WritePort(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET);
  const auto at = [&](const std::string& event) { return std::ranges::find(events, event); };
  ASSERT_NE(at("hardware reset"), events.end());
  EXPECT_LT(at("dma- done A 0x100003000"), at("slot- 0x100003000"));
  EXPECT_LT(at("slot- 0xc0000000"), at("hardware reset"));
  EXPECT_THAT(events, Not(Contains("dma+ A 0xc0000000")));
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_FALSE(device.answers()) << "what the driver restored is taken back";
  EXPECT_EQ(zaps.count(ZapCause::kBusReset), 1u);
  EXPECT_THAT(WritePort(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET), IsEmpty()) << "it is under way";
  EXPECT_THAT(WritePort(PCI_BRIDGE_CONTROL, 2, 0), IsEmpty()) << "its end is nothing to the device";
  EXPECT_EQ(Read(PCI_COMMAND, 2), 0u);
  EXPECT_EQ(Read(Bar(0), 4), 0u);
  EXPECT_EQ(Read(FakeDevice::kMsix + 2, 2) & PCI_MSIX_FLAGS_ENABLE, 0u);
  Assign();
  Decode();
  EXPECT_EQ(heart.slots.Slots().size(), 3u);
}

TEST_F(RootPortTest, WithoutAResetMethodTheGuestStillFindsResetValues) {
  device.can_reset = false;
  Open();
  Decode();
  EXPECT_THAT(WritePort(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET), Not(Contains("hardware reset")));
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_EQ(Read(PCI_COMMAND, 2), 0u);
}

TEST_F(RootPortTest, WithoutBusMasteringAtThePortNoDeviceBehindMastersTheBus) {
  Open();
  DecodeAndMaster();
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, PCI_COMMAND_MEMORY), ElementsAre("hardware config 0x4 = 0x2"));
  EXPECT_EQ(Read(PCI_COMMAND, 2), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER) << "the guest sees what it wrote";
  EXPECT_EQ(Read(PCI_COMMAND, 1), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  EXPECT_EQ(heart.slots.Slots().size(), 3u) << "it is a target still";
  EXPECT_THAT(Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY), ElementsAre("hardware config 0x4 = 0x2"));
  EXPECT_EQ(Read(PCI_COMMAND, 2), PCI_COMMAND_MEMORY);
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, kForward), ElementsAre("hardware config 0x4 = 0x2"))
      << "given back what the guest wanted last";
  WritePort(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
  DecodeAndMaster();
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, kForward), ElementsAre("hardware config 0x4 = 0x6"));
}

TEST_F(RootPortTest, AResetForgetsTheBusMasteringThatIsHeldBack) {
  Open();
  DecodeAndMaster();
  WritePort(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
  WritePort(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET);
  WritePort(PCI_BRIDGE_CONTROL, 2, 0);
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, kForward), ElementsAre("hardware config 0x4 = 0x0"));
}

TEST_F(RootPortTest, G8AMachineResetGoesThroughThePort) {
  PciRoot root(0, 1);
  ASSERT_TRUE(root.root_bus().Add({1, 0}, std::shared_ptr<PciFunction>(&port, [](PciFunction*) {})));
  Open();
  DecodeAndMaster();
  port.WriteConfig(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET);  // also what is under reset is found
  port.WriteConfig(PCI_BRIDGE_CONTROL, 2, 0);
  Assign();
  DecodeAndMaster();
  heart.recorder.Take();
  root.Reset();
  const Events events = heart.recorder.Take();
  EXPECT_EQ(events.front(), "hardware config 0x4 = 0x2") << "bus mastering first";
  const auto at = [&](const std::string& event) { return std::ranges::find(events, event); };
  EXPECT_LT(at("slot- 0xc0000000"), at("hardware reset"));
  EXPECT_NE(at("hardware reset"), events.end());
  EXPECT_EQ(port.forwarding(), PciRootPort::Forwarding());
  EXPECT_EQ(Read(PCI_COMMAND, 2), 0u);
}

TEST_F(RootPortTest, ALostDeviceStaysLostWhateverThePortDoes) {
  Open();
  DecodeAndMaster();
  function->Inject(ZapCause::kDeviceError);
  heart.recorder.Take();
  EXPECT_THAT(WritePort(PCI_COMMAND, 2, 0), IsEmpty());
  EXPECT_THAT(WritePort(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET), IsEmpty());
  EXPECT_TRUE(function->lost());
}

// Whatever is written, what is placed is what the registers of both say, and nothing else.
TEST_F(RootPortTest, G12AnyRegistersLeaveOnlyWhatBothLetThrough) {
  std::minstd_rand random(5);
  const auto pick = [&](std::initializer_list<uint32_t> values) {
    return values.begin()[random() % values.size()];
  };
  for (int i = 0; i < 20'000; ++i) {
    if (random() % 2 == 0) {
      const auto offset = static_cast<uint16_t>(pick({PCI_COMMAND, PCI_MEMORY_BASE, PCI_MEMORY_LIMIT,
                                                      PCI_PREF_MEMORY_BASE, PCI_PREF_MEMORY_LIMIT,
                                                      PCI_PREF_BASE_UPPER32, PCI_PREF_LIMIT_UPPER32,
                                                      PCI_BRIDGE_CONTROL, PCI_SECONDARY_BUS & ~1u}));
      port.WriteConfig(offset, 2, pick({0, 1, 2, 6, 7, 0xc000, 0xc010, 0xfff0, 0xffff, 0x40}));
    } else {
      const auto offset =
          static_cast<uint16_t>(pick({PCI_COMMAND, Bar(0) + 2u, Bar(2), Bar(2) + 2u, Bar(3)}));
      // A COMMAND that reads as all ones would be a lost device.
      const uint32_t mask = offset == PCI_COMMAND ? 0x7fff : 0xffff;
      function->WriteConfig(offset, 2, pick({0, 1, 2, 6, 0xc000, 0xc001, 0xffff}) & mask);
    }
    const PciRootPort::Forwarding through = port.forwarding();
    const bool decodes = (Read(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) != 0;
    const uint64_t bar0 = Read(Bar(0), 4) & ~0xfu;
    const uint64_t bar2 = (Read(Bar(2), 4) & ~0xfu) | uint64_t{Read(Bar(3), 4)} << 32;
    const auto expected = [&](uint64_t start, uint64_t size) {
      const bool in_window =
          windows.memory[0]->Contains(start, size) || windows.memory[1]->Contains(start, size);
      return decodes && in_window &&
             (through.memory.Contains(start, size) || through.prefetchable.Contains(start, size));
    };
    const bool overlap = bar0 < bar2 + 0x10000 && bar2 < bar0 + 0x1000;
    if (!overlap) {
      ASSERT_EQ(heart.Finds(bar0), expected(bar0, 0x1000)) << "step " << i;
      ASSERT_EQ(heart.Finds(bar2), expected(bar2, 0x10000)) << "step " << i;
    }
    ASSERT_EQ(device.config.Get<uint16_t>(PCI_COMMAND) & PCI_COMMAND_MASTER,
              through.upstream ? Read(PCI_COMMAND, 2) & PCI_COMMAND_MASTER : 0u);
  }
}

}  // namespace
}  // namespace crossbar::testing
