#include "devices/pci_config_space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/pci_regs.h>

#include <random>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Optional;
using Capability = PciConfigSpace::Capability;
using ExtendedCapability = PciConfigSpace::ExtendedCapability;

TEST(PciConfigSpaceTest, ValuesAreLittleEndianAtAnySize) {
  PciConfigSpace config;
  config.Set<uint32_t>(0x10, 0x44332211);
  EXPECT_EQ(config.Read(0x10, 4), 0x44332211u);
  EXPECT_EQ(config.Read(0x12, 2), 0x4433u);
  EXPECT_EQ(config.Read(0x13, 1), 0x44u);
  EXPECT_EQ(config.Get<uint16_t>(0x10), 0x2211);
}

TEST(PciConfigSpaceTest, WithoutAMaskNothingAGuestWritesSticks) {
  PciConfigSpace config;
  std::mt19937 random(1);
  for (uint16_t at = 0; at < PciConfigSpace::kSize; at += 4) {
    config.Set<uint32_t>(at, static_cast<uint32_t>(random()));
  }
  const PciConfigSpace before = config;
  for (uint16_t at = 0; at < PciConfigSpace::kSize; at += 4) {
    config.Write(at, 4, static_cast<uint32_t>(random()));
    EXPECT_EQ(config.Read(at, 4), before.Read(at, 4));
  }
}

TEST(PciConfigSpaceTest, OnlyWritableBitsChange) {
  PciConfigSpace config;
  config.Set<uint32_t>(0x10, 0x0000000c);
  config.SetWritable<uint32_t>(0x10, 0xfffff000);
  config.Write(0x10, 4, ~0u);
  EXPECT_EQ(config.Read(0x10, 4), 0xfffff00cu);
  config.Write(0x11, 1, 0);
  EXPECT_EQ(config.Read(0x10, 4), 0xffff0f0cu - 0x0f00u);
  config.Write(0x12, 2, 0x1234);
  EXPECT_EQ(config.Read(0x10, 4), 0x1234000cu);
}

TEST(PciConfigSpaceTest, WritingOneClearsAndWritingZeroKeeps) {
  PciConfigSpace config;
  config.Set<uint16_t>(PCI_STATUS, 0xf910);
  config.SetWriteOneToClear<uint16_t>(PCI_STATUS, 0xf900);
  config.SetWritable<uint16_t>(PCI_STATUS, 0x0100);  // both: clearing wins
  config.Write(PCI_STATUS, 2, 0x8010);
  EXPECT_EQ(config.Read(PCI_STATUS, 2), 0x7910u);
  config.Write(PCI_STATUS, 2, 0xffff);
  EXPECT_EQ(config.Read(PCI_STATUS, 2), 0x0010u);
  config.Write(PCI_STATUS, 2, 0x0100);
  EXPECT_EQ(config.Read(PCI_STATUS, 2), 0x0010u) << "not set by writing 1";
}

TEST(PciConfigSpaceTest, CapabilitiesAreLinkedInTheOrderTheyWereAdded) {
  PciConfigSpace config;
  EXPECT_THAT(config.Capabilities(), IsEmpty());
  EXPECT_THAT(config.AddCapability(PCI_CAP_ID_EXP, 0x3c), Optional(0x40));
  EXPECT_THAT(config.AddCapability(PCI_CAP_ID_MSIX, 12), Optional(0x7c));
  EXPECT_THAT(config.AddCapability(PCI_CAP_ID_PM, 8), Optional(0x88));
  EXPECT_EQ(config.Get<uint16_t>(PCI_STATUS), PCI_STATUS_CAP_LIST);
  EXPECT_EQ(config.Get<uint8_t>(PCI_CAPABILITY_LIST), 0x40);
  EXPECT_THAT(config.Capabilities(),
              ElementsAre(Capability{PCI_CAP_ID_EXP, 0x40}, Capability{PCI_CAP_ID_MSIX, 0x7c},
                          Capability{PCI_CAP_ID_PM, 0x88}));
  EXPECT_THAT(config.FindCapability(PCI_CAP_ID_MSIX), Optional(0x7c));
  EXPECT_EQ(config.FindCapability(PCI_CAP_ID_MSI), std::nullopt);
}

TEST(PciConfigSpaceTest, ACapabilityGoesAroundWhatIsThere) {
  PciConfigSpace config;
  config.Set<uint32_t>(0x48, 1);
  EXPECT_THAT(config.AddCapability(PCI_CAP_ID_PM, 8), Optional(0x40));
  EXPECT_THAT(config.AddCapability(PCI_CAP_ID_VNDR, 5), Optional(0x4c));
  EXPECT_THAT(config.AddCapability(PCI_CAP_ID_MSI, 24), Optional(0x54)) << "whole dwords";
}

TEST(PciConfigSpaceTest, WhereThereIsNoRoomNothingIsAdded) {
  PciConfigSpace config;
  EXPECT_TRUE(config.AddCapability(PCI_CAP_ID_EXP, 0xc0));
  EXPECT_EQ(config.AddCapability(PCI_CAP_ID_PM, 4), std::nullopt);
  EXPECT_EQ(config.AddCapability(PCI_CAP_ID_PM, 0xffff), std::nullopt);
  EXPECT_THAT(config.Capabilities(), ElementsAre(Capability{PCI_CAP_ID_EXP, 0x40}));
}

TEST(PciConfigSpaceTest, ExtendedCapabilitiesStartAt0x100) {
  PciConfigSpace config;
  EXPECT_THAT(config.ExtendedCapabilities(), IsEmpty());
  EXPECT_THAT(config.AddExtendedCapability(PCI_EXT_CAP_ID_ERR, 2, 0x48), Optional(0x100));
  EXPECT_THAT(config.AddExtendedCapability(PCI_EXT_CAP_ID_ACS, 1, 8), Optional(0x148));
  EXPECT_THAT(config.ExtendedCapabilities(),
              ElementsAre(ExtendedCapability{PCI_EXT_CAP_ID_ERR, 2, 0x100},
                          ExtendedCapability{PCI_EXT_CAP_ID_ACS, 1, 0x148}));
  EXPECT_THAT(config.FindExtendedCapability(PCI_EXT_CAP_ID_ACS), Optional(0x148));
  EXPECT_EQ(config.FindExtendedCapability(PCI_EXT_CAP_ID_SRIOV), std::nullopt);
}

TEST(PciConfigSpaceTest, AnExtendedListCannotStartElsewhere) {
  PciConfigSpace config;
  config.Set<uint32_t>(0x104, 1);
  EXPECT_EQ(config.AddExtendedCapability(PCI_EXT_CAP_ID_ERR, 1, 8), std::nullopt);
}

TEST(PciConfigSpaceTest, NullCapabilitiesAreWalkedOverButNotListed) {
  PciConfigSpace config;
  config.Set<uint32_t>(0x100, 0x14000000);  // id 0, next 0x140
  config.Set<uint32_t>(0x140, 0x00010003);
  EXPECT_THAT(config.ExtendedCapabilities(), ElementsAre(ExtendedCapability{3, 1, 0x140}));
}

TEST(PciConfigSpaceTest, G12AListThatLoopsEnds) {
  PciConfigSpace config;
  config.Set<uint16_t>(PCI_STATUS, PCI_STATUS_CAP_LIST);
  config.Set<uint8_t>(PCI_CAPABILITY_LIST, 0x40);
  config.Set<uint16_t>(0x40, 0x5305);  // to 0x50: the low bits are reserved
  config.Set<uint16_t>(0x50, 0x4011);  // back to 0x40
  EXPECT_THAT(config.Capabilities(), ElementsAre(Capability{5, 0x40}, Capability{0x11, 0x50}));
  config.Set<uint32_t>(0x100, 0x10010001);
  EXPECT_THAT(config.ExtendedCapabilities(), ElementsAre(ExtendedCapability{1, 1, 0x100}));
}

TEST(PciConfigSpaceTest, G12AListThatLeavesItsPlaceEnds) {
  PciConfigSpace config;
  config.Set<uint16_t>(PCI_STATUS, PCI_STATUS_CAP_LIST);
  config.Set<uint8_t>(PCI_CAPABILITY_LIST, 0x40);
  config.Set<uint16_t>(0x40, 0x1005);  // into the header
  config.Set<uint32_t>(0x10, 0xe0000009);
  EXPECT_THAT(config.Capabilities(), ElementsAre(Capability{5, 0x40}));
  config.Set<uint32_t>(0x100, 0x04010001);
  EXPECT_THAT(config.ExtendedCapabilities(), ElementsAre(ExtendedCapability{1, 1, 0x100}));
}

TEST(PciConfigSpaceTest, G12AnyContentsCanBeWalkedAndAddedTo) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    PciConfigSpace config;
    for (uint16_t at = 0; at < PciConfigSpace::kSize; at += 4) {
      // Sparse, so that there is room, with pointers that mostly hit something.
      if (random() % 4 != 0) config.Set<uint32_t>(at, static_cast<uint32_t>(random()));
    }
    config.Set<uint16_t>(PCI_STATUS, PCI_STATUS_CAP_LIST);
    EXPECT_LE(config.Capabilities().size(), 48u);
    EXPECT_LE(config.ExtendedCapabilities().size(), 960u);
    config.AddCapability(1, static_cast<uint16_t>(random() % 16));
    config.AddExtendedCapability(1, 1, static_cast<uint16_t>(random() % 64));
  }
}

TEST(PciConfigSpaceTest, AFunctionThatHasGoneHasNoExtendedCapabilities) {
  PciConfigSpace config;
  for (uint16_t at = 0; at < PciConfigSpace::kSize; at += 4) config.Set<uint32_t>(at, ~0u);
  EXPECT_THAT(config.ExtendedCapabilities(), IsEmpty());
  EXPECT_LE(config.Capabilities().size(), 1u);
}

TEST(PciConfigSpaceDeathTest, AnOwnerThatLeavesTheSpaceIsABrokenInvariant) {
  PciConfigSpace config;
  EXPECT_DEATH(config.Get<uint32_t>(4093), "CHECK");
  EXPECT_DEATH(config.Write(4095, 2, 0), "CHECK");
  EXPECT_DEATH(config.Read(0, 3), "CHECK");
}

}  // namespace
}  // namespace crossbar
