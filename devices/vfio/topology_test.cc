#include "devices/vfio/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/pci_regs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "devices/pci_config_space.h"

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint16_t kRedirects = PCI_ACS_RR | PCI_ACS_CR;
constexpr int kConventional = -1;
constexpr int kNoAcs = -1;

// A sysfs of PCI devices.
class TopologyTest : public ::testing::Test {
 protected:
  TopologyTest()
      : top_(::testing::TempDir() + "topology." + std::to_string(::getpid())),
        root_(top_ + "/devices/pci0000:00") {
    std::filesystem::create_directories(root_);
    std::filesystem::create_directories(top_ + "/bus/pci/devices");
  }
  ~TopologyTest() override { std::filesystem::remove_all(top_); }

  // `place` is the way to it from the root bus. Its memory is `size` bytes from `start`.
  void Add(const std::string& place, int express, int acs, uint64_t start = 0, uint64_t size = 0) {
    const std::string path = root_ + "/" + place;
    const std::string name = path.substr(path.rfind('/') + 1);
    std::filesystem::create_directories(path);
    std::filesystem::create_symlink(path, top_ + "/bus/pci/devices/" + name);
    PciConfigSpace config;
    const bool bridge = express >= PCI_EXP_TYPE_ROOT_PORT && express <= PCI_EXP_TYPE_PCI_BRIDGE;
    config.Set<uint8_t>(PCI_HEADER_TYPE, bridge ? PCI_HEADER_TYPE_BRIDGE : PCI_HEADER_TYPE_NORMAL);
    if (express != kConventional) {
      config.Set<uint16_t>(PCI_STATUS, PCI_STATUS_CAP_LIST);
      config.Set<uint8_t>(PCI_CAPABILITY_LIST, 0x40);
      config.Set<uint8_t>(0x40, PCI_CAP_ID_EXP);
      config.Set<uint16_t>(0x40 + PCI_EXP_FLAGS, static_cast<uint16_t>(express << 4));
    }
    if (acs != kNoAcs) {
      config.Set<uint32_t>(0x100, 0x10000 | PCI_EXT_CAP_ID_ACS);
      config.Set<uint16_t>(0x100 + PCI_ACS_CTRL, static_cast<uint16_t>(acs));
    }
    std::ofstream file(path + "/config", std::ios::binary);
    for (uint16_t i = 0; i < (readable_ ? PciConfigSpace::kSize : 64); ++i)
      file.put(static_cast<char>(config.Get<uint8_t>(i)));
    std::ofstream(path + "/class") << (bridge ? "0x060400\n" : "0x020000\n");
    std::ofstream(path + "/resource")
        << "0x000000000000c000 0x000000000000c01f 0x0000000000040101\n"
        << fmt::format("{:#018x} {:#018x} {:#018x}\n", start, size == 0 ? 0 : start + size - 1,
                       size == 0 ? 0 : 0x40200)
        << "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        << "0x00000000fff00000 0x00000000ffffffff 0x0000000030000200\n";  // a window that is off
  }
  // Ports 00:01.0 and 00:02.0 with a device each.
  void AddRootPorts(int acs) {
    Add("0000:00:01.0", PCI_EXP_TYPE_ROOT_PORT, acs, 0x80000000, 0x200000);
    Add("0000:00:01.0/0000:01:00.0", PCI_EXP_TYPE_ENDPOINT, kNoAcs, 0x80000000, 0x1000);
    Add("0000:00:02.0", PCI_EXP_TYPE_ROOT_PORT, acs, 0x80200000, 0x200000);
    Add("0000:00:02.0/0000:02:00.0", PCI_EXP_TYPE_ENDPOINT, kNoAcs, 0x80200000, 0x1000);
  }
  // A switch below 00:03.0, with ports 05:00.0 and 05:01.0 and a device behind each.
  void AddSwitch(int acs) {
    const std::string inside = "0000:00:03.0/0000:04:00.0";
    Add("0000:00:03.0", PCI_EXP_TYPE_ROOT_PORT, kRedirects, 0xa0000000, 0x1000000);
    Add(inside, PCI_EXP_TYPE_UPSTREAM, kNoAcs, 0xa0000000, 0x1000000);
    Add(inside + "/0000:05:00.0", PCI_EXP_TYPE_DOWNSTREAM, acs, 0xa0000000, 0x200000);
    Add(inside + "/0000:05:00.0/0000:06:00.0", PCI_EXP_TYPE_ENDPOINT, kNoAcs, 0xa0000000, 0x1000);
    Add(inside + "/0000:05:01.0", PCI_EXP_TYPE_DOWNSTREAM, acs, 0xa0400000, 0x200000);
    Add(inside + "/0000:05:01.0/0000:07:00.0", PCI_EXP_TYPE_ENDPOINT, kNoAcs, 0xa0400000, 0x1000);
  }

  HostPciDevice Find(const std::string& address) const {
    return FindHostPciDevice({.sys = top_, .dev = ""}, address).value();
  }
  std::string Reached(const std::string& initiator, const std::string& target) const {
    return ReachedPastIommu(TurnsOf(Find(initiator)), Find(target)).value_or("");
  }
  std::vector<GuestRange> Windows(const std::string& initiator) const {
    std::vector<GuestRange> all;
    for (const PciTurn& turn : TurnsOf(Find(initiator)))
      all.insert(all.end(), turn.windows.begin(), turn.windows.end());
    return all;
  }

  const std::string top_;
  const std::string root_;
  bool readable_ = true;
};

TEST_F(TopologyTest, PortsThatRedirectGuard) {
  AddRootPorts(kRedirects | PCI_ACS_SV);
  AddSwitch(kRedirects);
  for (const char* initiator : {"0000:01:00.0", "0000:06:00.0"}) {
    for (const char* target : {"0000:02:00.0", "0000:07:00.0"})
      EXPECT_EQ(Reached(initiator, target), "") << initiator << " to " << target;
    EXPECT_THAT(TurnsOf(Find(initiator)), IsEmpty());
  }
}

TEST_F(TopologyTest, ASwitchWithoutAcsTurnsRequestsInside) {
  AddRootPorts(kRedirects);
  AddSwitch(kNoAcs);
  EXPECT_EQ(Reached("0000:06:00.0", "0000:07:00.0"), "0000:05:00.0 has no ACS");
  EXPECT_EQ(Reached("0000:06:00.0", "0000:01:00.0"), "") << "beyond the switch they go through the root";
  EXPECT_EQ(Reached("0000:01:00.0", "0000:06:00.0"), "");
  EXPECT_EQ(Reached("0000:06:00.0", "0000:06:00.0"), "") << "not back down to itself";
  EXPECT_THAT(Windows("0000:06:00.0"), ElementsAre(GuestRange{Gpa(0xa0000000), 0x1000000}))
      << "what is in the switch's windows does not come out of it";
  EXPECT_THAT(Windows("0000:01:00.0"), IsEmpty());
}

TEST_F(TopologyTest, RedirectionOfRequestsOrCompletionsAloneIsNotEnough) {
  AddSwitch(PCI_ACS_RR);
  EXPECT_EQ(Reached("0000:06:00.0", "0000:07:00.0"), "0000:05:00.0 has the redirection of its ACS off");
  std::filesystem::remove_all(top_);
  std::filesystem::create_directories(top_ + "/bus/pci/devices");
  AddSwitch(PCI_ACS_CR);
  EXPECT_NE(Reached("0000:06:00.0", "0000:07:00.0"), "");
}

TEST_F(TopologyTest, RootPortsWithoutAcsReachTheWholeRootBus) {
  AddRootPorts(kNoAcs);
  Add("0000:00:05.0", kConventional, kNoAcs, 0xfe000000, 0x100000);
  EXPECT_EQ(Reached("0000:01:00.0", "0000:02:00.0"), "0000:00:01.0 has no ACS");
  EXPECT_EQ(Reached("0000:01:00.0", "0000:00:05.0"), "0000:00:01.0 has no ACS");
  EXPECT_EQ(Reached("0000:00:05.0", "0000:01:00.0"), "") << "it is in the root complex";
  EXPECT_EQ(Windows("0000:01:00.0").size(), 3u);
}

TEST_F(TopologyTest, FunctionsOfOneDeviceReachOneAnother) {
  AddRootPorts(kRedirects);
  Add("0000:00:01.0/0000:01:00.1", PCI_EXP_TYPE_ENDPOINT, kNoAcs);
  Add("0000:00:02.0/0000:02:00.1", PCI_EXP_TYPE_ENDPOINT, kRedirects);
  EXPECT_EQ(Reached("0000:01:00.0", "0000:01:00.1"), "0000:01:00.0 has no ACS");
  EXPECT_EQ(Reached("0000:02:00.1", "0000:02:00.0"), "") << "its own ACS redirects";
  EXPECT_EQ(Reached("0000:01:00.0", "0000:02:00.1"), "");
  // On the root bus it is the slot that makes a device.
  Add("0000:00:06.0", kConventional, kNoAcs);
  Add("0000:00:06.1", kConventional, kNoAcs);
  Add("0000:00:07.0", kConventional, kNoAcs);
  EXPECT_NE(Reached("0000:00:06.0", "0000:00:06.1"), "");
  EXPECT_EQ(Reached("0000:00:06.0", "0000:00:07.0"), "");
}

TEST_F(TopologyTest, AConventionalBusIsShared) {
  Add("0000:00:01.0", PCI_EXP_TYPE_ROOT_PORT, kRedirects);
  Add("0000:00:01.0/0000:01:00.0", PCI_EXP_TYPE_PCI_BRIDGE, kNoAcs, 0x90000000, 0x200000);
  Add("0000:00:01.0/0000:01:00.0/0000:02:01.0", kConventional, kNoAcs);
  Add("0000:00:01.0/0000:01:00.0/0000:02:02.0", kConventional, kNoAcs);
  EXPECT_EQ(Reached("0000:02:01.0", "0000:02:02.0"), "the bus below 0000:01:00.0 is shared");
}

TEST_F(TopologyTest, WhatCannotBeSeenDoesNotGuard) {
  readable_ = false;
  AddRootPorts(kRedirects);
  EXPECT_EQ(Reached("0000:01:00.0", "0000:02:00.0"), "the ACS of 0000:00:01.0 can be read by root only");
  std::filesystem::remove(root_ + "/0000:00:01.0/config");
  EXPECT_EQ(Reached("0000:01:00.0", "0000:02:00.0"), "0000:00:01.0 cannot be read");
}

TEST_F(TopologyTest, AListThatLeavesItsPlaceIsNoAcs) {
  AddRootPorts(kRedirects);
  std::fstream file(root_ + "/0000:00:01.0/config", std::ios::in | std::ios::out | std::ios::binary);
  const uint32_t leads = 0xffc0'0000 | 1 << 16 | PCI_EXT_CAP_ID_ERR;
  const uint32_t last = 1 << 16 | PCI_EXT_CAP_ID_ACS;
  file.seekp(0x100).write(reinterpret_cast<const char*>(&leads), 4);
  file.seekp(0xffc).write(reinterpret_cast<const char*>(&last), 4);
  file.close();
  EXPECT_EQ(Reached("0000:01:00.0", "0000:02:00.0"), "0000:00:01.0 has no ACS");
}

}  // namespace
}  // namespace crossbar
