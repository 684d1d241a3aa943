#include "devices/pci_root.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/pci_regs.h>

#include <atomic>
#include <functional>
#include <thread>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Reads as its id everywhere in the first dword, and as `header_type` where that lies.
class FakeFunction : public PciFunction {
 public:
  explicit FakeFunction(uint32_t id, uint8_t header_type = 0) {
    config_.Set<uint32_t>(PCI_VENDOR_ID, id);
    config_.Set<uint8_t>(PCI_HEADER_TYPE, header_type);
  }
  uint32_t ReadConfig(uint16_t offset, unsigned size) override {
    if (on_access) on_access();
    ++accesses;
    return config_.Read(offset, size);
  }
  void WriteConfig(uint16_t, unsigned, uint32_t value) override {
    if (on_access) on_access();
    ++accesses;
    written = value;
  }
  void Reset() override {}

  std::function<void()> on_access;
  std::atomic<uint64_t> accesses = 0;
  std::atomic<uint32_t> written = 0;

 private:
  PciConfigSpace config_;
};

class FakeBridge : public FakeFunction {
 public:
  explicit FakeBridge(uint32_t id) : FakeFunction(id, 1) {}
  Downstream downstream() override { return {&bus, secondary, subordinate}; }

  PciBus bus;
  uint8_t secondary = 0;
  uint8_t subordinate = 0;
};

uint32_t Id(PciRoot& root, PciAddress address) {
  return root.Read(address, PCI_VENDOR_ID, 4);
}

TEST(PciRootTest, AbsentFunctionsReadAsAllOnesAndDropWrites) {
  PciRoot root(0, 255);
  EXPECT_EQ(root.Read({0, {0, 0}}, 0, 4), 0xffffffffu);
  EXPECT_EQ(root.Read({0, {31, 7}}, 2, 2), 0xffffu);
  EXPECT_EQ(root.Read({7, {0, 0}}, 5, 1), 0xffu);
  root.Write({0, {0, 0}}, 0, 4, 0);
}

TEST(PciRootTest, AFunctionAnswersAtItsAddressAlone) {
  PciRoot root(0, 1);
  auto function = std::make_shared<FakeFunction>(0x12345678);
  ASSERT_TRUE(root.root_bus().Add({2, 3}, function));
  EXPECT_EQ(Id(root, {0, {2, 3}}), 0x12345678u);
  for (const PciAddress other : {PciAddress{0, {2, 2}}, {0, {3, 3}}, {1, {2, 3}}}) {
    EXPECT_EQ(Id(root, other), 0xffffffffu);
  }
  root.Write({0, {2, 3}}, 4, 4, 7);
  EXPECT_EQ(function->written, 7u);
  EXPECT_EQ(root.root_bus().Remove({2, 3}), function);
  EXPECT_EQ(Id(root, {0, {2, 3}}), 0xffffffffu);
  EXPECT_EQ(function.use_count(), 1);
}

TEST(PciRootTest, TheRootBusHasTheFirstNumber) {
  PciRoot root(0x20, 0x2f);
  ASSERT_TRUE(root.root_bus().Add({0, 0}, std::make_shared<FakeFunction>(1)));
  EXPECT_EQ(Id(root, {0x20, {0, 0}}), 1u);
  EXPECT_EQ(Id(root, {0, {0, 0}}), 0xffffffffu);

  auto bridge = std::make_shared<FakeBridge>(2);
  ASSERT_TRUE(root.root_bus().Add({1, 0}, bridge));
  ASSERT_TRUE(bridge->bus.Add({0, 0}, std::make_shared<FakeFunction>(3)));
  EXPECT_EQ(Id(root, {0, {0, 0}}), 0xffffffffu) << "bus 0 is no bus of this segment";
  bridge->secondary = bridge->subordinate = 0x30;
  EXPECT_EQ(Id(root, {0x30, {0, 0}}), 0xffffffffu) << "nor is one above the last";
}

TEST(PciRootTest, TakenAndImpossiblePlacesAreRefused) {
  PciRoot root(0, 0);
  PciBus& bus = root.root_bus();
  ASSERT_TRUE(bus.Add({1, 0}, std::make_shared<FakeFunction>(1)));
  const Result<> taken = bus.Add({1, 0}, std::make_shared<FakeFunction>(2));
  ASSERT_FALSE(taken);
  EXPECT_THAT(taken.error().ToString(), HasSubstr("01.0 is taken"));
  EXPECT_FALSE(bus.Add({32, 0}, std::make_shared<FakeFunction>(2)));
  EXPECT_FALSE(bus.Add({0, 8}, std::make_shared<FakeFunction>(2)));
  EXPECT_EQ(bus.Remove({32, 0}), nullptr);
  EXPECT_EQ(bus.Remove({2, 0}), nullptr);
  EXPECT_EQ(Id(root, {0, {1, 0}}), 1u);
}

TEST(PciRootTest, TheMultifunctionBitSaysWhatIsThereNow) {
  PciRoot root(0, 0);
  PciBus& bus = root.root_bus();
  // As a function of a physical multifunction device that is passed through alone.
  ASSERT_TRUE(bus.Add({4, 0}, std::make_shared<FakeFunction>(1, 0x80)));
  const PciAddress address{0, {4, 0}};
  EXPECT_EQ(root.Read(address, PCI_HEADER_TYPE, 1), 0u);
  ASSERT_TRUE(bus.Add({4, 5}, std::make_shared<FakeFunction>(2)));
  EXPECT_EQ(root.Read(address, PCI_HEADER_TYPE, 1), 0x80u);
  EXPECT_EQ(root.Read(address, PCI_HEADER_TYPE, 2), 0x80u);
  EXPECT_EQ(root.Read(address, PCI_CACHE_LINE_SIZE, 4), 0x800000u);
  EXPECT_EQ(root.Read(address, PCI_CACHE_LINE_SIZE, 2), 0u);
  EXPECT_EQ(root.Read(address, PCI_BIST, 1), 0u);
  bus.Remove({4, 5});
  EXPECT_EQ(root.Read(address, PCI_HEADER_TYPE, 1), 0u);
}

TEST(PciRootTest, ALostFunctionStaysAllOnes) {
  PciRoot root(0, 0);
  ASSERT_TRUE(root.root_bus().Add({4, 0}, std::make_shared<FakeFunction>(1, 0xff)));
  EXPECT_EQ(root.Read({0, {4, 0}}, PCI_HEADER_TYPE, 1), 0xffu);
}

TEST(PciRootTest, BridgesRouteTheBusNumbersTheGuestGaveThem) {
  PciRoot root(0, 255);
  auto outer = std::make_shared<FakeBridge>(0x10);
  auto inner = std::make_shared<FakeBridge>(0x20);
  ASSERT_TRUE(root.root_bus().Add({1, 0}, outer));
  ASSERT_TRUE(outer->bus.Add({0, 0}, inner));
  ASSERT_TRUE(inner->bus.Add({3, 0}, std::make_shared<FakeFunction>(0x30)));
  EXPECT_EQ(Id(root, {2, {3, 0}}), 0xffffffffu) << "nothing is programmed";

  outer->secondary = 1;
  outer->subordinate = 5;
  inner->secondary = 2;
  inner->subordinate = 2;
  EXPECT_EQ(Id(root, {1, {0, 0}}), 0x20u);
  EXPECT_EQ(Id(root, {2, {3, 0}}), 0x30u);
  EXPECT_EQ(Id(root, {3, {3, 0}}), 0xffffffffu);

  inner->secondary = inner->subordinate = 4;
  EXPECT_EQ(Id(root, {2, {3, 0}}), 0xffffffffu);
  EXPECT_EQ(Id(root, {4, {3, 0}}), 0x30u);
  EXPECT_THAT(root.root_bus().Functions().size(), 3u);
}

TEST(PciRootTest, G12AnyBusNumbersInBridgesAreRoutedInBoundedTime) {
  PciRoot root(0, 255);
  auto outer = std::make_shared<FakeBridge>(0x10);
  auto inner = std::make_shared<FakeBridge>(0x20);
  ASSERT_TRUE(root.root_bus().Add({1, 0}, outer));
  ASSERT_TRUE(outer->bus.Add({0, 0}, inner));
  constexpr uint8_t kNumbers[] = {0, 1, 2, 255};
  for (const uint8_t a : kNumbers) {
    for (const uint8_t b : kNumbers) {
      outer->secondary = a;
      outer->subordinate = b;
      inner->secondary = b;
      inner->subordinate = a;
      for (unsigned bus = 0; bus < 256; ++bus) Id(root, {static_cast<uint8_t>(bus), {0, 0}});
    }
  }
  EXPECT_EQ(Id(root, {0, {1, 0}}), 0x10u) << "the root bus stays reachable";
}

TEST(PciRootTest, G10NoLockIsHeldWhileAFunctionRuns) {
  PciRoot root(0, 0);
  PciBus& bus = root.root_bus();
  auto function = std::make_shared<FakeFunction>(1);
  ASSERT_TRUE(bus.Add({1, 0}, function));
  function->on_access = [&] {
    EXPECT_NE(bus.Remove({1, 0}), nullptr);  // itself
    EXPECT_TRUE(bus.Add({2, 0}, std::make_shared<FakeFunction>(2)));
    EXPECT_EQ(Id(root, {0, {2, 0}}), 2u);
  };
  const std::weak_ptr<FakeFunction> alive = function;
  function.reset();
  EXPECT_EQ(Id(root, {0, {1, 0}}), 1u) << "the function outlives its own removal";
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(Id(root, {0, {1, 0}}), 0xffffffffu);

  auto written = std::make_shared<FakeFunction>(3);
  ASSERT_TRUE(bus.Add({3, 0}, written));
  written->on_access = [&] { EXPECT_NE(bus.Remove({3, 0}), nullptr); };
  root.Write({0, {3, 0}}, PCI_COMMAND, 2, 7);
  EXPECT_EQ(written->written, 7u);
}

TEST(PciRootTest, WhileVcpusReadNoneReachesAFunctionThatAnotherThreadRemoved) {
  PciRoot root(0, 0);
  PciBus& bus = root.root_bus();
  std::atomic<bool> stop = false;
  std::array<std::atomic<uint64_t>, 2> rounds = {};
  std::vector<std::thread> vcpus;
  for (auto& round : rounds) {
    vcpus.emplace_back([&] {
      while (!stop) {
        const uint32_t id = Id(root, {0, {1, 0}});
        EXPECT_TRUE(id == 1 || id == 0xffffffff);
        root.Write({0, {1, 0}}, 4, 2, 0);
        ++round;
      }
    });
  }
  const auto wait = [&] {
    for (auto& round : rounds) {
      for (const uint64_t until = round + 2; round < until;) std::this_thread::yield();
    }
  };
  std::vector<std::shared_ptr<FakeFunction>> functions;
  std::vector<uint64_t> final_counts;
  for (int i = 0; i < 40; ++i) {
    functions.push_back(std::make_shared<FakeFunction>(1));
    ASSERT_TRUE(bus.Add({1, 0}, functions.back()));
    wait();
    ASSERT_NE(bus.Remove({1, 0}), nullptr);
    wait();
    final_counts.push_back(functions.back()->accesses);
  }
  stop = true;
  for (std::thread& vcpu : vcpus) vcpu.join();
  for (size_t i = 0; i < functions.size(); ++i) {
    EXPECT_GT(final_counts[i], 0u);
    EXPECT_EQ(functions[i]->accesses, final_counts[i]);
  }
}

TEST(HostBridgeTest, ItIsAReadOnlyHostBridgeWithoutBarsOrCapabilities) {
  PciRoot root(0, 0);
  ASSERT_TRUE(root.root_bus().Add({0, 0}, std::make_shared<HostBridge>()));
  const PciAddress address{0, {0, 0}};
  EXPECT_EQ(Id(root, address), 0x00081b36u);
  EXPECT_EQ(root.Read(address, PCI_CLASS_REVISION, 4), 0x06000000u);
  EXPECT_EQ(root.Read(address, PCI_HEADER_TYPE, 1), 0u);
  EXPECT_EQ(root.Read(address, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST, 0u);
  for (uint16_t at = 0; at < PciConfigSpace::kSize; at += 4) {
    const uint32_t before = root.Read(address, at, 4);
    root.Write(address, at, 4, ~before);
    EXPECT_EQ(root.Read(address, at, 4), before) << at;
  }
  for (uint16_t bar = PCI_BASE_ADDRESS_0; bar <= PCI_BASE_ADDRESS_5; bar += 4) {
    EXPECT_EQ(root.Read(address, bar, 4), 0u);
  }
}

TEST(PciAddressTest, ItPrintsAsInLspci) {
  EXPECT_EQ(fmt::format("{}", PciAddress{0xa, {0x1f, 7}}), "0a:1f.7");
}

}  // namespace
}  // namespace crossbar
