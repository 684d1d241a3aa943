#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/pci_regs.h>

#include <memory>
#include <string>
#include <vector>

#include "devices/pci_root.h"

namespace crossbar {
namespace {

using Events = std::vector<std::string>;

// A function that notes what happens to its COMMAND register.
class RecordingFunction : public PciFunction {
 public:
  RecordingFunction(std::string name, uint32_t command, Events& events)
      : name_(std::move(name)), command_(command), events_(events) {}

  uint32_t ReadConfig(uint16_t offset, unsigned) override {
    return offset == PCI_COMMAND ? command_ : 0;
  }
  void WriteConfig(uint16_t offset, unsigned, uint32_t value) override {
    if (offset != PCI_COMMAND) return;
    command_ = value;
    events_.push_back(fmt::format("{} command {:#x}", name_, value));
  }
  void Reset() override { events_.push_back(name_ + " reset"); }

 private:
  std::string name_;
  uint32_t command_;
  Events& events_;
};

// A bridge with one bus behind it.
class RecordingBridge : public RecordingFunction {
 public:
  using RecordingFunction::RecordingFunction;
  Downstream downstream() override { return {&bus, 1, 1}; }
  PciBus bus;
};

constexpr uint32_t kIoMemoryMaster = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;

TEST(PciRootTest, G8ResetStopsAllBusMasteringThenAllDecodingThenResets) {
  Events events;
  PciRoot root(0, 255);
  const auto bridge = std::make_shared<RecordingBridge>("bridge", kIoMemoryMaster, events);
  ASSERT_TRUE(root.root_bus().Add({1, 0}, bridge));
  ASSERT_TRUE(root.root_bus().Add(
      {2, 0}, std::make_shared<RecordingFunction>("nic", PCI_COMMAND_MEMORY, events)));
  ASSERT_TRUE(bridge->bus.Add({0, 0},
                              std::make_shared<RecordingFunction>("gpu", kIoMemoryMaster, events)));
  root.Reset();
  EXPECT_THAT(events, ::testing::ElementsAre("bridge command 0x3", "gpu command 0x3",  //
                                             "bridge command 0x0", "gpu command 0x0",
                                             "nic command 0x0",  //
                                             "bridge reset", "gpu reset", "nic reset"));
}

}  // namespace
}  // namespace crossbar
