// MSI-X, MSI and INTx of a passed-through device, through its registers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include "devices/passthrough/testing/rig.h"

namespace crossbar::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::IsSubsetOf;

class PassthroughInterruptTest : public ::testing::Test, public PassthroughRig {
 protected:
  static constexpr uint64_t kTable = 0x2000;  // in the 64-bit window, where BAR 2 starts
  static constexpr uint64_t kPending = 0x2800;
  static constexpr uint16_t kMsixControl = FakeDevice::kMsix + PCI_MSIX_FLAGS;

  void SetUp() override {
    Start();
    Assign();
    Decode();
  }
  PciWindow& bar() { return *windows.memory[1]; }
  // What everybody was told when vector `n` was written.
  Events WriteVector(unsigned n, uint64_t address, uint32_t data, bool masked) {
    heart.recorder.Take();
    bar().Write(kTable + 16 * n, 8, address);
    bar().Write(kTable + 16 * n + 8, 4, data);
    bar().Write(kTable + 16 * n + 12, 4, masked ? 1 : 0);
    return heart.recorder.Take();
  }
  void Signal(unsigned kind, uint32_t vector) {
    ASSERT_EQ(::eventfd_write(device.events.at({kind, vector}), 1), 0);
  }
};

TEST_F(PassthroughInterruptTest, INTxIsOnUntilMessagesAreAndComesBack) {
  EXPECT_TRUE(router.attached.contains(16));
  EXPECT_THAT(Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE),
              ElementsAre("hardware irq 0 off", "hardware irq 2 set 0+1"));
  EXPECT_FALSE(router.attached.contains(16));
  EXPECT_THAT(Write(kMsixControl, 2, 0), ElementsAre("hardware irq 2 off", "hardware irq 0 set 0+1"));
  EXPECT_TRUE(router.attached.contains(16));
}

TEST_F(PassthroughInterruptTest, INTxIsUnmaskedByUsWhereTheDeviceCannotWaitForTheEoi) {
  EXPECT_EQ(watcher.handlers.size(), 2u) << "REQ and ERR";
  function->Close();
  device.takes_unmask_event = false;
  Start();
  ASSERT_EQ(watcher.handlers.size(), 3u);
  for (const auto& [fd, handler] : std::map(watcher.handlers)) {
    if (fd == device.events.at({VFIO_PCI_REQ_IRQ_INDEX, 0}) ||
        fd == device.events.at({VFIO_PCI_ERR_IRQ_INDEX, 0}))
      continue;
    heart.recorder.Take();
    handler();
    EXPECT_THAT(heart.recorder.Take(), ElementsAre("hardware intx unmask"));
  }
}

TEST_F(PassthroughInterruptTest, MsixRoutesAreSetInOneBatchWhenTheFunctionIsUnmasked) {
  Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  for (unsigned n = 0; n < 3; ++n)
    EXPECT_THAT(WriteVector(n, 0xfee00000, 0x40 + n, false), IsEmpty());
  EXPECT_THAT(Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE),
              ElementsAre("routes 3", "hardware irq 2 set 0+3"));
  EXPECT_EQ(router.attached.size(), 3u);
  EXPECT_EQ(router.routes.at(25).data, 0x41u);
  EXPECT_EQ(router.routes.at(25).address, 0xfee00000u);
}

TEST_F(PassthroughInterruptTest, AVectorMoreIsGivenToTheDeviceAlone) {
  Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE);
  WriteVector(0, 0xfee00000, 0x40, false);
  EXPECT_THAT(WriteVector(2, 0xfee00000, 0x42, false),
              ElementsAre("routes 1", "hardware irq 2 set 2+1"));
}

TEST_F(PassthroughInterruptTest, ADeviceThatCannotGrowIsSetUpAnew) {
  device.interrupts[VFIO_PCI_MSIX_IRQ_INDEX].resizable = false;
  Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE);
  WriteVector(0, 0xfee00000, 0x40, false);
  EXPECT_THAT(WriteVector(2, 0xfee00000, 0x42, false),
              ElementsAre("routes 1", "hardware irq 2 off", "hardware irq 2 set 0+3"));
  EXPECT_EQ(device.events.at({VFIO_PCI_MSIX_IRQ_INDEX, 1}), -1) << "not in use";
}

TEST_F(PassthroughInterruptTest, AMaskedVectorIsPendingUntilItIsUnmasked) {
  Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE);
  WriteVector(1, 0xfee00000, 0x41, false);
  EXPECT_EQ(bar().Read(kPending, 8), 0u);
  bar().Write(kTable + 16 + 12, 4, 1);
  EXPECT_TRUE(router.attached.empty());
  Signal(VFIO_PCI_MSIX_IRQ_INDEX, 1);
  EXPECT_EQ(bar().Read(kPending, 8), 2u);
  EXPECT_THAT(WriteVector(1, 0xfee00000, 0x51, false), ElementsAre("routes 1"));
  EXPECT_EQ(router.attached.size(), 1u) << "KVM delivers what is in the eventfd now";
}

TEST_F(PassthroughInterruptTest, TheTableHoldsWhatIsWrittenAndStartsMasked) {
  for (unsigned n = 0; n < 4; ++n) EXPECT_EQ(bar().Read(kTable + 16 * n + 12, 4), 1u);
  bar().Write(kTable + 0x30, 8, 0x1122334455667788);
  bar().Write(kTable + 0x3c, 4, 0xffffffff);
  EXPECT_EQ(bar().Read(kTable + 0x34, 4), 0x11223344u);
  EXPECT_EQ(bar().Read(kTable + 0x3c, 4), 1u) << "the rest is reserved";
  bar().Write(kPending, 8, ~0ull);
  EXPECT_EQ(bar().Read(kPending, 8), 0u);
  EXPECT_EQ(device.memory[2][0x2030], 0) << "the device's own table is the host's";
}

TEST_F(PassthroughInterruptTest, TooFewGsisCostTheGuestItsInterruptAndNothingElse) {
  router.limit = 1;
  Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE);
  WriteVector(0, 0xfee00000, 0x40, false);
  WriteVector(1, 0xfee00000, 0x41, false);
  EXPECT_EQ(router.attached.size(), 1u);
  router.limit = 100;
  WriteVector(1, 0xfee00000, 0x41, false);
  EXPECT_EQ(router.attached.size(), 2u);
}

TEST_F(PassthroughInterruptTest, MsiDeliversItsVectorsInTheLowBitsOfItsData) {
  const uint16_t msi = FakeDevice::kMsi;
  EXPECT_EQ(Read(msi + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_QMASK, 2u << 1);
  Write(msi + PCI_MSI_ADDRESS_LO, 4, 0xfee00004);
  Write(msi + PCI_MSI_ADDRESS_HI, 4, 0x1);
  Write(msi + 12, 2, 0x4043);
  EXPECT_THAT(Write(msi + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE | 1 << 4),
              ElementsAre("hardware irq 0 off", "hardware irq 1 set 0+2", "routes 2",
                          "hardware irq 1 set 0+2"));
  EXPECT_EQ(router.routes.at(24).data, 0x4042u);
  EXPECT_EQ(router.routes.at(25).data, 0x4043u);
  EXPECT_EQ(router.routes.at(25).address, 0x1'fee00004u);
  Write(msi + 16, 4, 2);  // mask vector 1
  EXPECT_EQ(router.attached.size(), 1u);
  Signal(VFIO_PCI_MSI_IRQ_INDEX, 1);
  EXPECT_EQ(Read(msi + 20, 4), 2u) << "pending";
  Write(msi + 16, 4, 0);
  EXPECT_EQ(router.attached.size(), 2u);
}

TEST_F(PassthroughInterruptTest, AResetLeavesINTxAlone) {
  Write(kMsixControl, 2, PCI_MSIX_FLAGS_ENABLE);
  WriteVector(0, 0xfee00000, 0x40, false);
  function->Reset();
  EXPECT_EQ(router.attached.size(), 1u);
  EXPECT_TRUE(router.attached.contains(16));
  Assign();
  Decode();
  EXPECT_EQ(bar().Read(kTable + 12, 4), 1u);
}

TEST_F(PassthroughInterruptTest, ThePagesOfTheTableAreNotMappedAndTheRestIs) {
  std::vector<std::string> slots;
  for (const Memslot& slot : heart.slots.Slots()) slots.push_back(fmt::format("{}", slot.range));
  EXPECT_THAT(slots, ::testing::UnorderedElementsAre("0xc0000000-0xc0000fff", "0x100000000-0x100001fff",
                                                     "0x100003000-0x10000ffff"));
}

}  // namespace
}  // namespace crossbar::testing
