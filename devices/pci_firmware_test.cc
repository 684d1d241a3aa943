#include "devices/pci_firmware.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/pci_regs.h>

#include <memory>

#include "devices/pci_root_port.h"

namespace crossbar {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t k64 = PCI_BASE_ADDRESS_MEM_TYPE_64;
constexpr uint32_t k64Prefetchable = k64 | PCI_BASE_ADDRESS_MEM_PREFETCH;

// An endpoint with BARs of chosen sizes and kinds.
class Endpoint : public PciFunction {
 public:
  Endpoint() { config_.Set<uint32_t>(PCI_VENDOR_ID, 0x12345678); }

  Endpoint& Bar(unsigned index, uint64_t size, uint32_t type = 0) {
    const auto at = static_cast<uint16_t>(PCI_BASE_ADDRESS_0 + 4 * index);
    config_.Set<uint32_t>(at, type);
    config_.SetWritable<uint32_t>(at, static_cast<uint32_t>(~(size - 1)));
    if ((type & k64) != 0 && (type & 1) == 0)
      config_.SetWritable<uint32_t>(at + 4, static_cast<uint32_t>(~(size - 1) >> 32));
    return *this;
  }
  Endpoint& Rom(uint32_t size) {
    config_.SetWritable<uint32_t>(PCI_ROM_ADDRESS, ~(size - 1) | PCI_ROM_ADDRESS_ENABLE);
    return *this;
  }
  Endpoint& Pin(uint8_t pin) {
    config_.Set<uint8_t>(PCI_INTERRUPT_PIN, pin);
    config_.SetWritable<uint8_t>(PCI_INTERRUPT_LINE, 0xff);
    return *this;
  }
  uint64_t Address(unsigned index) const {
    const auto at = static_cast<uint16_t>(PCI_BASE_ADDRESS_0 + 4 * index);
    const auto low = config_.Get<uint32_t>(at);
    if ((low & 1) != 0) return low & ~3u;
    const uint64_t high = (low & k64) != 0 ? config_.Get<uint32_t>(at + 4) : 0;
    return (low & ~0xfu) | high << 32;
  }
  uint32_t rom() const { return config_.Get<uint32_t>(PCI_ROM_ADDRESS); }
  unsigned line() const { return config_.Get<uint8_t>(PCI_INTERRUPT_LINE); }

  uint32_t ReadConfig(uint16_t offset, unsigned size) override { return config_.Read(offset, size); }
  void WriteConfig(uint16_t offset, unsigned size, uint32_t value) override {
    config_.Write(offset, size, value);
  }
  void Reset() override {}

 private:
  PciConfigSpace config_;
};

class PciFirmwareTest : public ::testing::Test {
 protected:
  std::shared_ptr<Endpoint> Add(PciBus& bus, PciDevfn devfn) {
    auto endpoint = std::make_shared<Endpoint>();
    EXPECT_TRUE(bus.Add(devfn, endpoint));
    return endpoint;
  }
  std::shared_ptr<PciRootPort> AddPort(uint8_t slot) {
    auto port = std::make_shared<PciRootPort>();
    EXPECT_TRUE(root.root_bus().Add({slot, 0}, port));
    return port;
  }
  uint32_t Numbers(uint8_t slot) { return root.Read({0, {slot, 0}}, PCI_PRIMARY_BUS, 4); }

  PciRoot root{0, 4};
  PciWindows windows{{Gpa(0xc0000000), 512 * kMiB}, {Gpa(0x1'0000'0000), 4 * kGiB}, {Gpa(0x1000), 0xf000},
                     {16, 17, 18, 19}};
};

TEST_F(PciFirmwareTest, LargestFirstEachAlignedToItsSizeInItsWindow) {
  const auto a = Add(root.root_bus(), {1, 0});
  a->Bar(0, kMiB).Bar(1, 0x20, 1).Bar(2, 16 * kMiB, k64Prefetchable).Rom(0x10000).Pin(1);
  const auto b = Add(root.root_bus(), {2, 0});
  b->Bar(0, 4 * kMiB).Bar(2, kGiB, k64).Pin(2);
  ASSERT_TRUE(AssignPciResources(root, windows));
  EXPECT_EQ(b->Address(0), 0xc0000000u);
  EXPECT_EQ(a->Address(0), 0xc0400000u);
  EXPECT_EQ(a->rom(), 0xc0500000u);
  EXPECT_EQ(b->Address(2), 0x1'0000'0000u);
  EXPECT_EQ(a->Address(2), 0x1'4000'0000u);
  EXPECT_EQ(a->Address(1), 0x1000u);
  EXPECT_EQ(a->line(), 17u);
  EXPECT_EQ(b->line(), 19u);
}

TEST_F(PciFirmwareTest, WhatIsBehindAPortIsInItsWindowsAndThePortForwards) {
  const auto port = AddPort(2);
  const auto first = Add(port->bus(), {0, 0});
  first->Bar(0, 0x1000).Bar(1, 0x20, 1).Bar(2, 16 * kMiB, k64Prefetchable).Rom(0x800).Pin(1);
  const auto second = Add(port->bus(), {0, 1});
  second->Bar(0, 2 * kMiB, k64).Bar(2, kMiB, PCI_BASE_ADDRESS_MEM_PREFETCH).Pin(2);
  const auto other = Add(root.root_bus(), {1, 0});
  other->Bar(0, kMiB).Bar(1, 0x20, 1);
  ASSERT_TRUE(AssignPciResources(root, windows));

  EXPECT_EQ(Numbers(2) & 0xffffff, 0x010100u);
  const PciRootPort::Forwarding through = port->forwarding();
  EXPECT_EQ(through.memory, (PciRootPort::Window{0xc0000000, 0xc03fffff}));
  EXPECT_EQ(through.prefetchable, (PciRootPort::Window{0x1'0000'0000, 0x1'00ff'ffff}));
  EXPECT_TRUE(through.upstream);
  EXPECT_EQ(second->Address(0), 0xc0000000u) << "not prefetchable, so below 4 GiB";
  EXPECT_EQ(second->Address(2), 0xc0200000u);
  EXPECT_EQ(first->Address(0), 0xc0300000u);
  EXPECT_EQ(first->rom(), 0xc0301000u);
  EXPECT_EQ(first->Address(2), 0x1'0000'0000u);
  EXPECT_EQ(other->Address(0), 0xc0400000u);
  EXPECT_EQ(through.ports, (PciRootPort::Window{0x1000, 0x1fff}));
  EXPECT_EQ(first->Address(1), 0x1000u);
  EXPECT_EQ(other->Address(1), 0x2000u);
  EXPECT_EQ(first->line(), 18u) << "INTA of device 0 is that of the port's slot";
  EXPECT_EQ(second->line(), 19u);
  EXPECT_EQ(first->ReadConfig(PCI_COMMAND, 2), 0u) << "decode is the guest's to switch on";
}

TEST_F(PciFirmwareTest, WindowsThatNothingNeedsAreClosed) {
  const auto empty = AddPort(1);
  const auto used = AddPort(3);
  Add(used->bus(), {0, 0})->Bar(0, 0x1000);
  ASSERT_TRUE(AssignPciResources(root, windows));
  EXPECT_EQ(Numbers(1) & 0xffffff, 0x010100u);
  EXPECT_EQ(Numbers(3) & 0xffffff, 0x020200u);
  for (const PciRootPort::Window& window :
       {empty->forwarding().memory, empty->forwarding().prefetchable, empty->forwarding().ports,
        used->forwarding().prefetchable, used->forwarding().ports})
    EXPECT_GT(window.first, window.last);
  EXPECT_EQ(used->forwarding().memory, (PciRootPort::Window{0xc0000000, 0xc00fffff}));
}

TEST_F(PciFirmwareTest, WhatFitsNowhereIsNamed) {
  const auto port = AddPort(2);
  Add(port->bus(), {0, 0})->Bar(0, kGiB, k64);
  const Result<> behind = AssignPciResources(root, windows);
  ASSERT_FALSE(behind);
  EXPECT_THAT(behind.error().message(), HasSubstr("what is behind guest device 00:02.0 needs 0x40000000"));
  root.root_bus().Remove({2, 0});
  Add(root.root_bus(), {5, 0})->Bar(0, kGiB);
  const Result<> bar = AssignPciResources(root, windows);
  ASSERT_FALSE(bar);
  EXPECT_THAT(bar.error().message(), HasSubstr("the BAR at 0x10 of guest device 00:05.0 needs 0x40000000"));
}

}  // namespace
}  // namespace crossbar
