#include "boot/fdt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "boot/fdt_testing.h"
#include "boot/fdt_writer.h"
#include "boot/tables_testing.h"

namespace crossbar {
namespace {

using namespace testing_tables;
using testing::ElementsAre;
using testing::HasSubstr;

Tree Build(const PlatformInfo& platform, std::string_view bootargs = "console=ttyS0") {
  return Tree(BuildDeviceTree(platform, bootargs).value());
}

TEST(Fdt, TheRootNamesTheMachine) {
  const Tree tree = Build(DefaultPlatform());
  EXPECT_EQ(tree.String("/", "compatible"), "crossbar,x86");
  EXPECT_EQ(tree.String("/", "model"), "Crossbar");
  EXPECT_THAT(tree.Cells("/", "#address-cells"), ElementsAre(2));
  EXPECT_THAT(tree.Cells("/", "#size-cells"), ElementsAre(2));
  EXPECT_THAT(tree.Children("/"), ElementsAre("chosen", "cpus", "memory@0", "memory@100000000",
                                              "interrupt-controller@fec00000",
                                              "local-apic@fee00000", "pcie@e0000000", "isa"));
}

TEST(Fdt, ChosenHasBootargsAndConsole) {
  const Tree tree = Build(DefaultPlatform(), "root=/dev/vda quiet");
  EXPECT_EQ(tree.String("/chosen", "bootargs"), "root=/dev/vda quiet");
  EXPECT_EQ(tree.String("/chosen", "stdout-path"), "/isa/serial@3f8");
  EXPECT_EQ(Build(DefaultPlatform(), "").String("/chosen", "bootargs"), "");
  const Tree odd = Build(OddPlatform());
  EXPECT_TRUE(odd.Has(odd.String("/chosen", "stdout-path")));
}

TEST(Fdt, LongBootargsFit) {
  const std::string bootargs(2 * kMiB, 'x');
  EXPECT_EQ(Build(DefaultPlatform(254), bootargs).String("/chosen", "bootargs"), bootargs);
}

TEST(Fdt, CpusAreNamedByTheirApicIds) {
  const Tree tree = Build(OddPlatform());
  EXPECT_THAT(tree.Cells("/cpus", "#address-cells"), ElementsAre(1));
  EXPECT_THAT(tree.Cells("/cpus", "#size-cells"), ElementsAre(0));
  EXPECT_THAT(tree.Children("/cpus"), ElementsAre("cpu@3", "cpu@1", "cpu@fe"));
  EXPECT_THAT(tree.Cells("/cpus/cpu@fe", "reg"), ElementsAre(254));
  EXPECT_EQ(tree.String("/cpus/cpu@fe", "device_type"), "cpu");
  EXPECT_EQ(Build(DefaultPlatform(254)).Children("/cpus").size(), 254u);
}

TEST(Fdt, EachRamBankIsAMemoryNode) {
  const Tree tree = Build(OddPlatform());
  EXPECT_EQ(tree.String("/memory@0", "device_type"), "memory");
  EXPECT_THAT(tree.Cells("/memory@0", "reg"), ElementsAre(0, 0, 0, 0x12345000));
  EXPECT_THAT(tree.Cells("/memory@123456000", "reg"), ElementsAre(1, 0x23456000, 0, 0x789a000));
}

TEST(Fdt, ReservesTheAcpiTablesAndTheResetVector) {
  const Tree tree = Build(DefaultPlatform());
  std::vector<std::pair<uint64_t, uint64_t>> reserved;
  for (int i = 0; i < fdt_num_mem_rsv(tree.fdt()); ++i) {
    auto& [start, size] = reserved.emplace_back();
    ASSERT_EQ(fdt_get_mem_rsv(tree.fdt(), i, &start, &size), 0);
  }
  EXPECT_THAT(reserved, ElementsAre(std::pair(0xe0000, 0x1fff0), std::pair(0xffff0, 0x10)));
}

TEST(Fdt, TheInterruptControllerIsAnIoApic) {
  const Tree tree = Build(OddPlatform());
  const std::string path = "/interrupt-controller@fec34000";
  EXPECT_EQ(tree.String(path, "compatible"), "intel,ce4100-ioapic");
  EXPECT_THAT(tree.Cells(path, "reg"), ElementsAre(0, 0xfec34000, 0, 0x1000));
  EXPECT_THAT(tree.Cells(path, "#interrupt-cells"), ElementsAre(2));
  EXPECT_EQ(tree.Property(path, "interrupt-controller"), "");
  EXPECT_EQ(tree.Cells(path, "phandle"), tree.Cells("/", "interrupt-parent"));
  EXPECT_THAT(tree.Cells("/local-apic@fed12000", "reg"), ElementsAre(0, 0xfed12000, 0, 0x1000));
}

TEST(Fdt, ThePciHostBridgeHasItsEcamBusesAndWindows) {
  const Tree tree = Build(OddPlatform());
  const std::string path = "/pcie@d1200000";
  EXPECT_EQ(tree.String(path, "compatible"), "pci-host-ecam-generic");
  EXPECT_EQ(tree.String(path, "device_type"), "pci");
  EXPECT_THAT(tree.Cells(path, "reg"), ElementsAre(0, 0xd1200000, 0, 0x4000000));
  EXPECT_THAT(tree.Cells(path, "bus-range"), ElementsAre(0x12, 0x51));
  EXPECT_THAT(tree.Cells(path, "#address-cells"), ElementsAre(3));
  EXPECT_THAT(tree.Cells(path, "#size-cells"), ElementsAre(2));
  EXPECT_THAT(tree.Cells(path, "ranges"),
              ElementsAre(0x01000000, 0, 0x2340, 0, 0x2340, 0, 0x5670,             //
                          0x02000000, 0, 0xc1230000, 0, 0xc1230000, 0, 0x4560000,  //
                          0x43000000, 0x123, 0x45678000, 0x123, 0x45678000, 0x9a, 0xbcdef000));
  EXPECT_EQ(Build(DefaultPlatform()).Cells("/pcie@e0000000", "ranges")[14], 0x03000000u);
}

// The GSI and sense of a slot's pin (0 = INTA), found as a guest does it: mask, then compare.
std::vector<uint32_t> Route(const Tree& tree, const std::string& path, uint32_t slot,
                            uint32_t pin) {
  const std::vector<uint32_t> mask = tree.Cells(path, "interrupt-map-mask");
  const std::vector<uint32_t> map = tree.Cells(path, "interrupt-map");
  const std::vector<uint32_t> wanted = {slot << 11 & mask[0], 0, 0, (pin + 1) & mask[3]};
  constexpr size_t kEntry = 7;
  EXPECT_EQ(map.size() % kEntry, 0u);
  std::vector<uint32_t> found;
  for (size_t at = 0; at < map.size(); at += kEntry) {
    const std::vector<uint32_t> entry(map.begin() + static_cast<ptrdiff_t>(at),
                                      map.begin() + static_cast<ptrdiff_t>(at + kEntry));
    if (!std::equal(wanted.begin(), wanted.end(), entry.begin())) continue;
    EXPECT_TRUE(found.empty()) << "two routes";
    EXPECT_EQ(entry[4], tree.Cells("/", "interrupt-parent")[0]);
    found = {entry[5], entry[6]};
  }
  return found;
}

TEST(Fdt, EverySlotAndPinIsRoutedOnce) {
  const PlatformInfo platform = OddPlatform();
  const Tree tree = Build(platform);
  for (uint32_t slot = 0; slot < 32; ++slot) {
    for (uint32_t pin = 0; pin < 4; ++pin) {
      EXPECT_THAT(Route(tree, "/pcie@d1200000", slot, pin),
                  ElementsAre(platform.pci.intx_gsi[(slot + pin) % 4], 1));  // 1: level, low
    }
  }
}

TEST(Fdt, IsaDevicesHaveTheirPorts) {
  const Tree tree = Build(OddPlatform());
  EXPECT_EQ(tree.String("/isa", "compatible"), "isa");
  EXPECT_THAT(tree.Cells("/isa", "#address-cells"), ElementsAre(2));
  EXPECT_THAT(tree.Cells("/isa", "#size-cells"), ElementsAre(1));
  EXPECT_EQ(tree.String("/isa/serial@2e8", "compatible"), "ns16550a");
  EXPECT_THAT(tree.Cells("/isa/serial@2e8", "reg"), ElementsAre(1, 0x2e8, 8));
  EXPECT_THAT(tree.Cells("/isa/serial@2e8", "clock-frequency"), ElementsAre(24'000'000));
  EXPECT_THAT(tree.Cells("/isa/serial@2e8", "interrupts"), ElementsAre(7, 0));  // 0: edge, rising
  EXPECT_EQ(tree.String("/isa/debug-exit@501", "compatible"), "crossbar,debug-exit");
  EXPECT_THAT(tree.Cells("/isa/debug-exit@501", "reg"), ElementsAre(1, 0x501, 4));
  EXPECT_EQ(tree.String("/isa/boot-marker@84", "compatible"), "crossbar,boot-marker");
  EXPECT_THAT(tree.Cells("/isa/boot-marker@84", "reg"), ElementsAre(1, 0x84, 1));
  EXPECT_EQ(tree.String("/isa/sleep@712", "compatible"), "crossbar,acpi-sleep");
  EXPECT_THAT(tree.Cells("/isa/sleep@712", "reg"), ElementsAre(1, 0x712, 2));
  EXPECT_THAT(tree.Cells("/isa/sleep@712", "s5-sleep-type"), ElementsAre(3));
  EXPECT_EQ(tree.String("/isa/reset@92", "compatible"), "crossbar,reset-control");
  EXPECT_THAT(tree.Cells("/isa/reset@92", "reg"), ElementsAre(1, 0x92, 1));
  EXPECT_THAT(tree.Cells("/isa/reset@92", "reset-value"), ElementsAre(0x41));
}

TEST(Fdt, RefusesSleepRegistersApart) {
  PlatformInfo platform = DefaultPlatform();
  platform.power.sleep_status_port = 0x604;
  const auto blob = BuildDeviceTree(platform, "");
  ASSERT_FALSE(blob);
  EXPECT_THAT(blob.error().ToString(), HasSubstr("0x604"));
}

TEST(Fdt, DtcAcceptsItWithoutAWarning) {
  if (!HasTool("dtc")) GTEST_SKIP() << "dtc (Debian: device-tree-compiler) is not installed";
  for (const PlatformInfo& platform : {DefaultPlatform(3), OddPlatform()}) {
    const auto blob = BuildDeviceTree(platform, "console=ttyS0");
    ASSERT_TRUE(blob);
    const ScratchDirectory scratch;
    const ToolRun run = RunTool(fmt::format("dtc -I dtb -O dts -o {}/tree.dts {}", scratch.path(),
                                            scratch.Write("tree.dtb", *blob)));
    EXPECT_EQ(run.status, 0);
    EXPECT_EQ(run.output, "");
    EXPECT_THAT(scratch.Read("tree.dts"), HasSubstr("crossbar,x86"));
  }
}

TEST(FdtWriter, KeepsTheFirstErrorAndWhereItWas) {
  FdtWriter fdt(128, {});
  {
    const auto root = fdt.Begin("");
    fdt.Cells("fits", {1});
    fdt.String("too-long", std::string(200, 'x'));
    fdt.String("too-long-again", std::string(300, 'x'));
    fdt.Cells("fits-again", {1});
    const auto child = fdt.Begin("child-that-does-not-fit-into-the-rest", ~0ull);
    fdt.Flag("neither-does-this-flag");
  }
  const auto blob = std::move(fdt).Finish();
  ASSERT_FALSE(blob);
  EXPECT_EQ(blob.error().ToString(),
            "cannot write the device tree at too-long: FDT_ERR_NOSPACE (room for 128 bytes)");
}

TEST(FdtWriter, EveryCapacityGivesTheWholeTreeOrAnError) {
  size_t whole = 0;
  for (size_t capacity = 0; capacity < 400; ++capacity) {
    FdtWriter fdt(capacity, std::vector<GuestRange>{{Gpa(0x1000), 0x1000}});
    {
      const auto root = fdt.Begin("");
      const auto child = fdt.Begin("child", 0x10);
      fdt.Reg({Gpa(0x10), 0x20});
      fdt.Flag("flag");
      fdt.String("string", "value");
    }
    auto blob = std::move(fdt).Finish();
    if (!blob) {
      EXPECT_THAT(blob.error().ToString(), HasSubstr("FDT_ERR_NOSPACE"));
      EXPECT_EQ(whole, 0u) << "fitted in less";
      continue;
    }
    ++whole;
    EXPECT_EQ(Tree(std::move(*blob)).String("/child@10", "string"), "value");
  }
  EXPECT_GT(whole, 100u);
}

}  // namespace
}  // namespace crossbar
