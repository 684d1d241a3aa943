#include "devices/pci_root_port.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/pci_regs.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Notes what the port tells it.
class Listener : public PciFunction {
 public:
  uint32_t ReadConfig(uint16_t offset, unsigned) override { return offset == 0 ? 0x12345678 : 0; }
  void WriteConfig(uint16_t, unsigned, uint32_t) override {}
  void Reset() override { told.push_back("reset"); }
  void OnBusReset() override { told.push_back("bus reset"); }
  void OnForwardingChange() override { told.push_back("change"); }

  std::vector<std::string> told;
};

class PciRootPortTest : public ::testing::Test {
 protected:
  static constexpr PciAddress kPort{0, {3, 0}};

  PciRootPortTest() {
    EXPECT_TRUE(root.root_bus().Add(kPort.devfn, port));
    EXPECT_TRUE(port->bus().Add({0, 0}, below));
    EXPECT_TRUE(port->bus().Add({0, 1}, beside));
  }
  uint32_t Read(uint16_t offset, unsigned size) { return root.Read(kPort, offset, size); }
  void Write(uint16_t offset, unsigned size, uint32_t value) { root.Write(kPort, offset, size, value); }
  uint32_t IdAt(PciAddress address) { return root.Read(address, PCI_VENDOR_ID, 4); }
  uint16_t Express(uint16_t offset) {
    return static_cast<uint16_t>(Read(PCI_CAPABILITY_LIST, 1) + offset);
  }

  PciRoot root{0, 8};
  std::shared_ptr<PciRootPort> port = std::make_shared<PciRootPort>();
  std::shared_ptr<Listener> below = std::make_shared<Listener>();
  std::shared_ptr<Listener> beside = std::make_shared<Listener>();
};

TEST_F(PciRootPortTest, IsAPcieRootPortWithoutBarsInterruptsOrASlot) {
  EXPECT_EQ(Read(PCI_VENDOR_ID, 4), 0x000c1b36u);
  EXPECT_EQ(Read(PCI_CLASS_REVISION, 4), 0x06040000u);
  EXPECT_EQ(Read(PCI_HEADER_TYPE, 1), 1u);
  EXPECT_EQ(Read(PCI_INTERRUPT_PIN, 1), 0u);
  EXPECT_EQ(Read(Express(PCI_CAP_LIST_ID), 1), uint32_t{PCI_CAP_ID_EXP});
  EXPECT_EQ(Read(Express(PCI_CAP_LIST_NEXT), 1), 0u);
  EXPECT_EQ(Read(Express(PCI_EXP_FLAGS), 2), 0x42u) << "version 2, root port, no slot";
  EXPECT_EQ(Read(PciConfigSpace::kFirstExtendedCapability, 4), 0u);
  for (const int bar : {PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_1, PCI_ROM_ADDRESS1}) {
    Write(static_cast<uint16_t>(bar), 4, ~0u);
    EXPECT_EQ(Read(static_cast<uint16_t>(bar), 4), 0u);
  }
}

TEST_F(PciRootPortTest, WindowsAreWhatTheRegistersSayOnceDecodeIsOn) {
  Write(PCI_IO_BASE, 2, 0x3f2f);
  Write(PCI_MEMORY_BASE, 4, 0xc01fc00f);
  Write(PCI_PREF_MEMORY_BASE, 4, 0x100f2000);
  Write(PCI_PREF_BASE_UPPER32, 4, 4);
  Write(PCI_PREF_LIMIT_UPPER32, 4, 5);
  EXPECT_EQ(port->forwarding(), PciRootPort::Forwarding());
  Write(PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
  const PciRootPort::Forwarding through = port->forwarding();
  EXPECT_EQ(through.ports, (PciRootPort::Window{0x2000, 0x3fff}));
  EXPECT_EQ(through.memory, (PciRootPort::Window{0xc0000000, 0xc01fffff}));
  EXPECT_EQ(through.prefetchable, (PciRootPort::Window{0x4'2000'0000, 0x5'100f'ffff}));
  EXPECT_FALSE(through.upstream);
  EXPECT_EQ(Read(PCI_PREF_MEMORY_BASE, 4), 0x10012001u) << "both 64-bit";
  EXPECT_EQ(Read(PCI_IO_BASE, 2), 0x3020u) << "both 16-bit";
}

TEST_F(PciRootPortTest, AWindowHoldsWhatLiesInItWhole) {
  const PciRootPort::Window window{0x1000, 0x1fff};
  EXPECT_TRUE(window.Contains(0x1000, 0x1000));
  EXPECT_FALSE(window.Contains(0xfff, 1));
  EXPECT_FALSE(window.Contains(0x1000, 0x1001));
  EXPECT_FALSE(window.Contains(0x2000, 1));
  EXPECT_FALSE(window.Contains(0x1800, ~0ull));
  const PciRootPort::Window closed{0x2000, 0x1fff};
  EXPECT_FALSE(closed.Contains(0x2000, 1));
  EXPECT_FALSE(closed.Contains(0x1fff, 1));
  EXPECT_TRUE((PciRootPort::Window{0, ~0ull}.Contains(~0ull, 1)));
}

TEST_F(PciRootPortTest, WhatIsBehindIsToldOfWhatChangesForIt) {
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
  EXPECT_THAT(below->told, ElementsAre("change"));
  EXPECT_THAT(beside->told, ElementsAre("change"));
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_PARITY);
  Write(PCI_IO_BASE, 2, 0xf0);
  Write(PCI_PRIMARY_BUS, 4, 0x00030201);
  EXPECT_THAT(below->told, ElementsAre("change"));
  Write(PCI_MEMORY_BASE, 1, 0x10);
  EXPECT_THAT(below->told, ElementsAre("change", "change"));
}

TEST_F(PciRootPortTest, ABusResetIsToldOnceAndWhileItLastsNobodyBehindAnswers) {
  Write(PCI_PRIMARY_BUS, 4, 0x00020200);
  EXPECT_EQ(IdAt({2, {0, 0}}), 0x12345678u);
  const uint16_t status = Express(PCI_EXP_LNKSTA);
  const uint16_t control = Express(PCI_EXP_LNKCTL);
  struct Way {
    uint16_t offset;
    uint16_t bit;
  };
  for (const Way way : {Way{PCI_BRIDGE_CONTROL, PCI_BRIDGE_CTL_BUS_RESET}, Way{control, PCI_EXP_LNKCTL_LD}}) {
    EXPECT_NE(Read(status, 2) & PCI_EXP_LNKSTA_DLLLA, 0u);
    Write(way.offset, 2, way.bit);
    EXPECT_EQ(Read(status, 2) & PCI_EXP_LNKSTA_DLLLA, 0u);
    EXPECT_EQ(IdAt({2, {0, 0}}), 0xffffffffu);
    Write(way.offset, 2, way.bit);
    Write(way.offset, 2, 0);
    EXPECT_THAT(below->told, ElementsAre("bus reset"));
    EXPECT_THAT(beside->told, ElementsAre("bus reset"));
    EXPECT_EQ(IdAt({2, {0, 0}}), 0x12345678u);
    below->told.clear();
    beside->told.clear();
  }
}

TEST_F(PciRootPortTest, AMachineResetEndsABusResetAndForgetsAllNumbers) {
  Write(PCI_PRIMARY_BUS, 4, 0x00020200);
  Write(PCI_MEMORY_BASE, 4, 0xc010c000);
  Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  Write(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_BUS_RESET);
  below->told.clear();
  root.Reset();
  EXPECT_THAT(below->told, ElementsAre("change", "change", "reset"));
  EXPECT_EQ(IdAt({2, {0, 0}}), 0xffffffffu);
  EXPECT_EQ(Read(PCI_PRIMARY_BUS, 4), 0u);
  EXPECT_EQ(Read(PCI_BRIDGE_CONTROL, 2), 0u);
  EXPECT_EQ(port->forwarding(), PciRootPort::Forwarding());
  EXPECT_NE(Read(Express(PCI_EXP_LNKSTA), 2) & PCI_EXP_LNKSTA_DLLLA, 0u);
}

TEST_F(PciRootPortTest, G10NoLockIsHeldWhileAFunctionIsTold) {
  class Asking : public Listener {
   public:
    explicit Asking(PciRootPort& port) : port_(port) {}
    void OnForwardingChange() override {
      EXPECT_TRUE(port_.forwarding().upstream);
      port_.WriteConfig(PCI_BRIDGE_CONTROL, 2, PCI_BRIDGE_CTL_SERR);
      EXPECT_NE(port_.bus().Remove({1, 0}), nullptr);  // itself
    }
    PciRootPort& port_;
  };
  ASSERT_TRUE(port->bus().Add({1, 0}, std::make_shared<Asking>(*port)));
  Write(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
  EXPECT_EQ(Read(PCI_BRIDGE_CONTROL, 2), uint32_t{PCI_BRIDGE_CTL_SERR});
}

// Whatever a guest writes, the port stays what it is, and the root bus stays reachable.
TEST_F(PciRootPortTest, G12AnyWritesLeaveThePortAPort) {
  std::minstd_rand random(3);
  for (int i = 0; i < 20'000; ++i) {
    const unsigned size = 1u << random() % 3;
    const auto offset = static_cast<uint16_t>(random() % 0x80 & ~(size - 1));
    Write(offset, size, static_cast<uint32_t>(random() << 4 ^ random()));
    ASSERT_EQ(Read(PCI_VENDOR_ID, 4), 0x000c1b36u);
    ASSERT_EQ(Read(PCI_HEADER_TYPE, 1), 1u);
    ASSERT_EQ(Read(Express(PCI_EXP_FLAGS), 2), 0x42u);
    const uint32_t numbers = Read(PCI_PRIMARY_BUS, 4);
    const unsigned secondary = numbers >> 8 & 0xff;
    const unsigned subordinate = numbers >> 16 & 0xff;
    const bool up = (Read(Express(PCI_EXP_LNKSTA), 2) & PCI_EXP_LNKSTA_DLLLA) != 0;
    for (unsigned bus = 1; bus <= 9; ++bus) {
      const bool reached = up && bus == secondary && bus <= subordinate && bus <= 8;
      ASSERT_EQ(IdAt({static_cast<uint8_t>(bus), {0, 0}}), reached ? 0x12345678u : 0xffffffffu);
    }
  }
}

}  // namespace
}  // namespace crossbar
