#include "devices/passthrough/function.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/passthrough/testing/rig.h"

namespace crossbar::testing {
namespace {

using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class PassthroughTest : public ::testing::Test, public PassthroughRig {
 protected:
  void SetUp() override {
    domain_ = heart.Join(heart.a);
    Start();
  }
  AddressSpace::DomainHandle domain_;
};

TEST_F(PassthroughTest, StartsAsAfterPowerOn) {
  EXPECT_EQ(Read(PCI_VENDOR_ID, 2), 0x1234u);
  EXPECT_EQ(Read(PCI_COMMAND, 2), 0u) << "though its driver left it decoding";
  EXPECT_EQ(Read(Bar(0), 4), 0u);
  EXPECT_EQ(Read(Bar(2), 4), 0xcu);
  EXPECT_TRUE(heart.slots.Slots().empty());
}

TEST_F(PassthroughTest, BarsAreSizedAndHoldWhatIsWrittenInParts) {
  Write(Bar(2), 4, ~0u);
  Write(Bar(3), 4, ~0u);
  EXPECT_EQ(Read(Bar(2), 4), 0xffff000cu);
  EXPECT_EQ(Read(Bar(3), 4), 0xffffffffu);
  Write(Bar(4), 4, ~0u);
  EXPECT_EQ(Read(Bar(4), 4), 0xffffff00u);
  Write(Bar(5), 4, ~0u);
  EXPECT_EQ(Read(Bar(5), 4), 0xffffffe1u);
  EXPECT_EQ(Read(Bar(1), 4), 0u) << "there is no BAR 1";
  Write(Bar(0) + 3, 1, 0xc1);
  Write(Bar(0) + 2, 1, 0x22);
  EXPECT_EQ(Read(Bar(0), 4), 0xc1220000u);
  EXPECT_EQ(device.config.Get<uint32_t>(Bar(0)), 0xc0000000u) << "the device's own stays";
}

TEST_F(PassthroughTest, G1DecodeOnTakesTheHardwareThenSlotsThenDma) {
  Assign();
  EXPECT_THAT(Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY),
              ElementsAre("hardware config 0x4 = 0x2", "slot+ 0xc0000000", "dma+ A 0xc0000000",
                          "slot+ 0x100000000", "slot+ 0x100003000", "dma+ A 0x100000000",
                          "dma+ A 0x100003000"));
}

TEST_F(PassthroughTest, G2DecodeOffTakesDmaThenSlotsThenTheHardware) {
  Assign();
  Decode();
  EXPECT_THAT(Write(PCI_COMMAND, 2, 0),
              ElementsAre("dma- start A 0xc0000000", "dma- start A 0x100000000",
                          "dma- start A 0x100003000", "dma- done A 0xc0000000",
                          "dma- done A 0x100000000", "dma- done A 0x100003000", "slot- 0x100003000",
                          "slot- 0x100000000", "slot- 0xc0000000", "hardware config 0x4 = 0x0"));
  const ZapNotification last = zaps.Recent().back();
  EXPECT_EQ(last.cause, ZapCause::kDecodeOff);
  EXPECT_EQ(last.pieces, 3u);
  EXPECT_LE(last.noticed, last.dma_out);
  EXPECT_LE(last.dma_out, last.slots_out);
  EXPECT_LE(last.slots_out, last.hardware_done);
}

TEST_F(PassthroughTest, G9RepeatingCostsTheWriteAlone) {
  Assign();
  Decode();
  EXPECT_THAT(Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY), ElementsAre("hardware config 0x4 = 0x2"));
  EXPECT_THAT(Write(Bar(0), 4, kWindow32), IsEmpty());
  Write(PCI_COMMAND, 2, 0);
  EXPECT_THAT(Write(PCI_COMMAND, 2, 0), ElementsAre("hardware config 0x4 = 0x0"));
}

TEST_F(PassthroughTest, G2ABarThatMovesLeavesItsOldPlaceFirstAndTheHardwareIsNotTold) {
  Assign();
  Decode();
  EXPECT_THAT(Write(Bar(0), 4, 0xc0010000),
              ElementsAre("dma- start A 0xc0000000", "dma- done A 0xc0000000", "slot- 0xc0000000",
                          "slot+ 0xc0010000", "dma+ A 0xc0010000"));
}

TEST_F(PassthroughTest, A64BitBarMovesByHalvesAndIsNowhereOutsideTheWindows) {
  Assign();
  Decode();
  Write(Bar(3), 4, 0x7777);
  EXPECT_FALSE(heart.Finds(0x7777'0000'0000));
  EXPECT_FALSE(heart.Finds(kWindow64));
  Write(Bar(2), 4, 0x40000);
  Write(Bar(3), 4, kWindow64 >> 32);
  EXPECT_TRUE(heart.Finds(kWindow64 + 0x40000));
}

TEST_F(PassthroughTest, G4ABarOverAnotherIsAClaimUntilTheOtherLeaves) {
  Assign();
  Write(Bar(2), 4, kWindow32);
  Write(Bar(3), 4, 0);
  Decode();
  EXPECT_EQ(heart.space.Find(Gpa(kWindow32))->backing.bar, 0);
  Write(Bar(0), 4, 0xd0000000);
  EXPECT_EQ(heart.space.Find(Gpa(kWindow32))->backing.bar, 2);
}

TEST_F(PassthroughTest, G2AFunctionResetZapsFirstAndTheGuestFindsResetValues) {
  Assign();
  Write(FakeDevice::kMsix + 2, 2, PCI_MSIX_FLAGS_ENABLE);
  Decode();
  for (const auto& [offset, size, bit] :
       {std::tuple<uint16_t, unsigned, uint32_t>{FakeDevice::kExpress + PCI_EXP_DEVCTL, 2,
                                                 PCI_EXP_DEVCTL_BCR_FLR},
        {FakeDevice::kAdvanced + PCI_AF_CTRL, 1, PCI_AF_CTRL_FLR}}) {
    Assign();
    Decode();
    const Events events = Write(offset, size, bit);
    const auto at = [&](const std::string& event) { return std::ranges::find(events, event); };
    const auto reset = at(fmt::format("hardware config {:#x} = {:#x}", offset, bit));
    ASSERT_NE(reset, events.end());
    EXPECT_LT(at("dma- done A 0x100003000"), reset);
    EXPECT_LT(at("slot- 0x100003000"), reset);
    EXPECT_EQ(Read(PCI_COMMAND, 2), 0u);
    EXPECT_EQ(Read(Bar(0), 4), 0u);
    EXPECT_EQ(Read(FakeDevice::kMsix + 2, 2) & PCI_MSIX_FLAGS_ENABLE, 0u);
    EXPECT_FALSE(device.answers()) << "what the driver restored is taken back";
    EXPECT_TRUE(heart.slots.Slots().empty());
  }
  EXPECT_EQ(zaps.count(ZapCause::kFunctionReset), 2u);
}

TEST_F(PassthroughTest, G2PowerDownZapsFirstAndPowerUpMapsAfter) {
  Assign();
  Decode();
  EXPECT_EQ(Write(FakeDevice::kPower + PCI_PM_CTRL, 2, 3).back(), "hardware config 0x44 = 0x3");
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_EQ(Write(FakeDevice::kPower + PCI_PM_CTRL, 2, 0).front(), "hardware config 0x44 = 0x0");
  EXPECT_EQ(heart.slots.Slots().size(), 3u);
}

TEST_F(PassthroughTest, AMachineResetRestoresPowerOnValues) {
  Assign();
  Decode();
  heart.recorder.Take();
  function->Reset();
  const Events events = heart.recorder.Take();
  EXPECT_EQ(events.front(), "dma- start A 0xc0000000");
  EXPECT_NE(std::ranges::find(events, "hardware reset"), events.end());
  EXPECT_EQ(Read(Bar(2), 4), 0xcu);
  EXPECT_EQ(Read(PCI_COMMAND, 2), 0u);
}

// The driver restores them around a reset, as the kernel does.
TEST_F(PassthroughTest, AResetPutsBackWhatTheDriverKeeps) {
  struct Register {
    uint16_t offset;
    unsigned size;
    uint32_t written, after_function_reset;
  };
  constexpr uint16_t kErrors = 0x140, kDeviceControl = FakeDevice::kExpress + PCI_EXP_DEVCTL;
  const std::array registers = {
      Register{FakeDevice::kPower + PCI_PM_CTRL, 2, PCI_PM_CTRL_PME_ENABLE, 0},
      Register{kDeviceControl, 2, PCI_EXP_DEVCTL_READRQ_4096B | PCI_EXP_DEVCTL_PAYLOAD_256B, PCI_EXP_DEVCTL_PAYLOAD_256B},
      Register{FakeDevice::kExpress + PCI_EXP_DEVCTL2, 2, 0x1f, 0},
      Register{kErrors + PCI_ERR_UNCOR_MASK, 4, 0x100000, 0x100000},
      Register{kErrors + PCI_ERR_UNCOR_SEVER, 4, 0x1000, 0x1000},
      Register{kErrors + PCI_ERR_COR_MASK, 4, 0x2000, 0x2000},
      Register{kErrors + PCI_ERR_CAP, 4, PCI_ERR_CAP_ECRC_GENE, PCI_ERR_CAP_ECRC_GENE}};
  const auto write = [&] {
    for (const Register& r : registers) Write(r.offset, r.size, r.written);
  };
  for (const bool can_reset : {false, true}) {
    device.can_reset = can_reset;
    write();
    function->Reset();
    for (const Register& r : registers) EXPECT_EQ(Read(r.offset, r.size), 0u) << std::hex << r.offset;
    heart.recorder.Take();
    function->Reset();
    EXPECT_THAT(heart.recorder.Take(), Each(AnyOf(Not(StartsWith("hardware config")), "hardware config 0x4 = 0x0")))
        << "they are there already";
  }
  write();
  Write(kDeviceControl, 2, registers[1].written | PCI_EXP_DEVCTL_BCR_FLR);
  for (const Register& r : registers) EXPECT_EQ(Read(r.offset, r.size), r.after_function_reset) << std::hex << r.offset;
}

TEST_F(PassthroughTest, ADeviceLeftInD3IsPutIntoD0) {
  function->Close();
  device.open = true;
  device.config.Set<uint16_t>(FakeDevice::kPower + PCI_PM_CTRL, 3);
  Start();
  EXPECT_EQ(Read(FakeDevice::kPower + PCI_PM_CTRL, 2), 0u);
}

TEST_F(PassthroughTest, G7WhatTheHostWantsBackLeavesTheBusAndReadsAllOnes) {
  Assign();
  Decode();
  heart.recorder.Take();
  watcher.Run(device.events.at({VFIO_PCI_REQ_IRQ_INDEX, 0}));
  const Events events = heart.recorder.Take();
  EXPECT_EQ(events.front(), "dma- start A 0xc0000000");
  EXPECT_NE(std::ranges::find(events, "hardware leave bus"), events.end());
  EXPECT_TRUE(function->lost());
  EXPECT_EQ(Read(PCI_COMMAND, 2), 0xffffu);
  EXPECT_EQ(Read(PCI_VENDOR_ID, 4), 0xffffffffu);
  EXPECT_EQ(windows.memory[0]->Read(0, 4), 0xffffffffu);
  EXPECT_THAT(Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY), IsEmpty());
  EXPECT_EQ(zaps.count(ZapCause::kWantedBack), 1u);
  EXPECT_EQ(events.back(), "hardware close") << "or the host waits for ever";
  EXPECT_FALSE(device.open);
}

TEST_F(PassthroughTest, G7AnUncorrectableErrorTakesTheDeviceDownForGood) {
  Assign();
  Decode();
  watcher.Run(device.events.at({VFIO_PCI_ERR_IRQ_INDEX, 0}));
  EXPECT_TRUE(function->lost());
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_TRUE(heart.a.Mapped().empty());
  EXPECT_TRUE(device.open);
  function->Reset();
  EXPECT_TRUE(function->lost());
}

TEST_F(PassthroughTest, ALostDeviceIsGivenBackToo) {
  Assign();
  Decode();
  const int wanted = device.events.at({VFIO_PCI_REQ_IRQ_INDEX, 0});
  watcher.Run(device.events.at({VFIO_PCI_ERR_IRQ_INDEX, 0}));
  EXPECT_TRUE(device.open);
  watcher.Run(wanted);
  EXPECT_FALSE(device.open) << "or the host waits for ever";
  EXPECT_EQ(zaps.count(ZapCause::kWantedBack), 0u) << "there was nothing left to take away";
}

TEST_F(PassthroughTest, G5WhatAPeerMayStillReachGoesOnAnswering) {
  Assign();
  Decode();
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  heart.a.AnswerUnmaps(std::vector(9, Answer::kFailed));  // each of three pieces, each time
  const Events events = Write(PCI_COMMAND, 2, 0);
  EXPECT_THAT(events, Contains("unsafe"));
  EXPECT_THAT(events, Not(Contains(StartsWith("hardware"))));
  EXPECT_TRUE(device.answers());
  // What the VM does before it stops.
  EXPECT_THAT(Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY), Contains("hardware config 0x4 = 0x2"));
  // No other cause stops it either, and the host gets it when the VM has ended.
  EXPECT_THAT(Write(FakeDevice::kPower + PCI_PM_CTRL, 2, 3), Not(Contains(StartsWith("hardware"))));
  watcher.Run(device.events.at({VFIO_PCI_REQ_IRQ_INDEX, 0}));
  EXPECT_TRUE(device.open);
  heart.a.Drop();
}

TEST_F(PassthroughTest, OneThatVanishedIsLostAndOneThatIsWellIsNot) {
  Assign();
  Decode();
  function->OnVanished(Gpa(kWindow32));
  EXPECT_FALSE(function->lost());
  EXPECT_FALSE(heart.slots.Slots().empty());
  device.config.Set<uint16_t>(PCI_COMMAND, 0);  // behind our back
  function->OnVanished(Gpa(kWindow32));
  EXPECT_TRUE(function->lost());
  EXPECT_EQ(zaps.count(ZapCause::kDeviceGone), 1u);
}

TEST_F(PassthroughTest, OneThatIsBlamedAgainAndAgainIsLostHoweverWellItLooks) {
  Assign();
  Decode();
  for (unsigned i = 0; i < 8; ++i) function->OnVanished(Gpa(kWindow32));
  EXPECT_TRUE(function->lost());
}

TEST_F(PassthroughTest, G11ItsFilesCloseAfterEverythingElse) {
  Assign();
  Decode();
  heart.recorder.Take();
  function->Close();
  const Events events = heart.recorder.Take();
  EXPECT_EQ(events.back(), "hardware close");
  EXPECT_TRUE(heart.slots.Slots().empty());
  EXPECT_TRUE(heart.a.Mapped().empty());
  EXPECT_EQ(Read(PCI_VENDOR_ID, 2), 0xffffu);
  function->Close();
}

TEST_F(PassthroughTest, AHardwareStepThatFailsLosesTheDevice) {
  Assign();
  device.gone = true;
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
  EXPECT_TRUE(function->lost());
  EXPECT_TRUE(heart.slots.Slots().empty());
}

TEST_F(PassthroughTest, AnInjectedErrorIsAnErrorWithAMark) {
  Assign();
  Decode();
  function->Inject(ZapCause::kDeviceError);
  EXPECT_TRUE(function->lost());
  EXPECT_TRUE(zaps.Recent().back().injected);
  EXPECT_TRUE(device.open);
}

TEST_F(PassthroughTest, AnInjectedCauseDoesWhatItImitates) {
  Assign();
  Decode();
  heart.recorder.Take();
  function->Inject(ZapCause::kDecodeOff);
  EXPECT_EQ(heart.slots.Slots().size(), 3u) << "gone for a moment";
  EXPECT_THAT(heart.recorder.Take(), Contains("slot- 0xc0000000"));
  function->Inject(ZapCause::kFunctionReset);
  EXPECT_THAT(heart.recorder.Take(), Contains("hardware reset"));
  EXPECT_EQ(Read(Bar(2), 4), 0xcu);
  function->Inject(ZapCause::kWantedBack);
  EXPECT_TRUE(function->lost());
  EXPECT_FALSE(device.open);
  function->Inject(ZapCause::kFunctionReset);
  for (const ZapNotification& zap : zaps.Recent())
    EXPECT_TRUE(zap.injected || zap.cause == ZapCause::kDecodeOn) << ZapCauseName(zap.cause);
}

TEST_F(PassthroughTest, TrappedAccessesReachTheDeviceOnlyWhileItDecodes) {
  Write(Bar(4), 4, kWindow32 + 0x100000);
  Write(Bar(5), 4, 0x1000);
  device.memory[4][8] = 0x5a;
  const auto read = [&] { return windows.memory[0]->Read(0x100008, 1); };
  EXPECT_EQ(read(), 0xffu);
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_IO);
  EXPECT_EQ(read(), 0x5au);
  windows.memory[0]->Write(0x100010, 4, 0x11223344);
  EXPECT_EQ(device.memory[4][0x13], 0x11);
  windows.ports->Write(4, 2, 0xbeef);
  EXPECT_EQ(windows.ports->Read(4, 2), 0xbeefu);
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
  EXPECT_EQ(windows.ports->Read(4, 2), 0xffffu);
  EXPECT_EQ(read(), 0x5au);
}

TEST_F(PassthroughTest, CapabilitiesThatWouldLieAreHidden) {
  std::vector<uint8_t> ids;
  for (auto at = Read(PCI_CAPABILITY_LIST, 1); at != 0; at = Read(static_cast<uint16_t>(at + 1), 1))
    ids.push_back(static_cast<uint8_t>(Read(static_cast<uint16_t>(at), 1)));
  EXPECT_THAT(ids, ElementsAre(PCI_CAP_ID_PM, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_EXP,
                               PCI_CAP_ID_AF));
  EXPECT_EQ(Read(0x100, 4), 0x14000000u) << "the first is null and leads on";
  EXPECT_EQ(Read(0x140, 4), 0x00020000u | PCI_EXT_CAP_ID_ERR) << "the last that is left";
}

TEST_F(PassthroughTest, P2pOffKeepsItsBarsOutOfEveryDomain) {
  function->Close();
  device.open = true;
  Start({.id = "alone", .p2p = false});
  Assign();
  Decode();
  EXPECT_EQ(heart.slots.Slots().size(), 3u);
  EXPECT_TRUE(heart.a.Mapped().empty());
}

TEST_F(PassthroughTest, ARomIsReadThroughItsRegister) {
  function->Close();
  std::vector<std::byte> image(3000, std::byte{0x55});
  Start({.id = "rom", .rom_image = image});
  Write(PCI_ROM_ADDRESS, 4, ~0u);
  EXPECT_EQ(Read(PCI_ROM_ADDRESS, 4), 0xfffff001u);
  Write(PCI_ROM_ADDRESS, 4, kWindow32 + 0x200000 + PCI_ROM_ADDRESS_ENABLE);
  Decode();
  EXPECT_EQ(windows.memory[0]->Read(0x200000, 4), 0x55555555u);
  EXPECT_EQ(windows.memory[0]->Read(0x200000 + 3000, 4), 0xffffffffu) << "beyond the image";
}

TEST_F(PassthroughTest, WhatMakesNoSenseIsRefusedAndLeavesNothing) {
  function->Close();
  device.regions[0].size = 0x1800;
  auto made = PassthroughFunction::Create(std::make_unique<FakeBackend>(device), {.id = "bad"}, Around());
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().message(), ::testing::HasSubstr("BAR 0"));
  EXPECT_FALSE(device.open);
  device.regions[0].size = 0x1000;
  device.config.Set<uint32_t>(FakeDevice::kMsix + PCI_MSIX_TABLE, 0xffff0002);
  made = PassthroughFunction::Create(std::make_unique<FakeBackend>(device), {.id = "bad"}, Around());
  ASSERT_FALSE(made);
  device.config.Set<uint8_t>(PCI_HEADER_TYPE, PCI_HEADER_TYPE_BRIDGE);
  made = PassthroughFunction::Create(std::make_unique<FakeBackend>(device), {.id = "bad"}, Around());
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().message(), ::testing::HasSubstr("bridge"));
}

// A server's, as vfio-user has it: the kernel's driver checks what it shows.
TEST_F(PassthroughTest, G12AnErrorCapabilityThatLeavesConfigSpaceIsLeftAlone) {
  function->Close();
  for (const uint32_t at : {0xfe8u, 0xff8u, 0xffcu}) {
    device.open = true;
    device.config.Set<uint32_t>(0x140, at << 20 | 0x10000 | PCI_EXT_CAP_ID_DSN);
    device.config.Set<uint32_t>(static_cast<uint16_t>(at), 0x20000 | PCI_EXT_CAP_ID_ERR);
    Start({.id = "odd"});
    EXPECT_EQ(Read(static_cast<uint16_t>(at), 4), 0x20000u | PCI_EXT_CAP_ID_ERR);
    function->Close();
  }
}

}  // namespace
}  // namespace crossbar::testing
