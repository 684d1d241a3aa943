// ACPI and the device tree, each read back by its own reader, tell the same machine.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "boot/acpi_tables.h"
#include "boot/fdt.h"
#include "boot/fdt_testing.h"
#include "boot/tables_testing.h"

namespace crossbar {
namespace {

using namespace testing_tables;

// What both must say, in neither's words.
struct Machine {
  std::vector<uint32_t> cpus;
  GuestRange ecam;
  uint64_t first_bus = 0;
  uint64_t last_bus = 0;
  GuestRange io;
  GuestRange window32;
  GuestRange window64;
  bool window64_prefetchable = false;
  std::map<uint64_t, uint64_t> gsi;  // by slot * 4 + pin
  uint64_t ioapic = 0;
  uint64_t local_apic = 0;
  uint64_t serial_port = 0;
  uint64_t serial_gsi = 0;
  uint64_t sleep_port = 0;
  uint64_t reset_port = 0;
  uint64_t reset_value = 0;
  bool operator==(const Machine&) const = default;
};

GuestRange Window(const Resource& resource) {
  return {Gpa(resource.Number("Address Minimum")), resource.Number("Address Length")};
}

void AddHostBridge(Machine& machine, const std::vector<std::byte>& dsdt) {
  for (const Resource& resource : EvaluateResources(dsdt, "\\_SB.PCI0")) {
    if (resource.kind == "PCI IRQ Routing Table Package") {
      const uint64_t slot = resource.Number("Address") >> 16;
      machine.gsi[slot * 4 + resource.Number("Pin")] = resource.Number("Source Index");
    } else if (resource.kind == "16-Bit WORD Address Space Resource") {
      machine.first_bus = resource.Number("Address Minimum");
      machine.last_bus = resource.Number("Address Maximum");
    } else if (resource.kind == "64-Bit QWORD Address Space Resource") {
      machine.window64 = Window(resource);
      machine.window64_prefetchable = resource.fields.at("Caching") == "Prefetchable";
    } else if (resource.kind == "32-Bit DWORD Address Space Resource") {
      const bool io = resource.fields.at("Resource Type") == "I/O Range";
      (io ? machine.io : machine.window32) = Window(resource);
    }
  }
}

Machine FromAcpi(const PlatformInfo& platform) {
  Machine machine;
  const AcpiImage image = WriteAndReadAcpi(platform);
  const std::vector<std::byte>& madt = image.tables.at("APIC");
  machine.local_apic = ReadAs<AcpiMadt>(madt).local_apic;
  for (size_t at = sizeof(AcpiMadt); at < madt.size();
       at += std::to_integer<size_t>(madt[at + 1])) {
    const auto type = std::to_integer<int>(madt[at]);
    if (type == 0) machine.cpus.push_back(ReadAs<AcpiLocalApic>(madt, at).apic_id);
    if (type == 1) machine.ioapic = ReadAs<AcpiIoApic>(madt, at).address;
  }
  const auto fadt = ReadAs<AcpiFadt>(image.tables.at("FACP"));
  machine.sleep_port = fadt.sleep_control.address;
  machine.reset_port = fadt.reset_register.address;
  machine.reset_value = fadt.reset_value;

  const std::vector<std::byte>& dsdt = image.tables.at("DSDT");
  AddHostBridge(machine, dsdt);
  const auto mcfg = ReadAs<AcpiMcfg>(image.tables.at("MCFG"));
  machine.ecam = {Gpa(mcfg.base + mcfg.first_bus * kMiB),
                  (mcfg.last_bus - mcfg.first_bus + 1u) * kMiB};
  const auto serial = EvaluateResources(dsdt, "\\_SB.COM1");
  machine.serial_port = serial.at(0).Number("Address Minimum");
  machine.serial_gsi = serial.at(1).Number("Dword00");
  return machine;
}

// The only child of `parent` whose name begins with `prefix`.
std::string Child(const Tree& tree, const std::string& parent, const std::string& prefix) {
  for (const std::string& name : tree.Children(parent)) {
    if (name.starts_with(prefix)) return parent + (parent == "/" ? "" : "/") + name;
  }
  ADD_FAILURE() << "no " << prefix << " in " << parent;
  return "";
}

Machine FromDeviceTree(const PlatformInfo& platform) {
  Machine machine;
  const Tree tree(BuildDeviceTree(platform, "").value());
  for (const std::string& cpu : tree.Children("/cpus")) {
    machine.cpus.push_back(tree.Cells("/cpus/" + cpu, "reg").at(0));
  }
  const std::string pci = Child(tree, "/", "pcie@");
  const auto reg = tree.Cells(pci, "reg");
  machine.ecam = {Gpa(Cells64(reg, 0)), Cells64(reg, 2)};
  machine.first_bus = tree.Cells(pci, "bus-range").at(0);
  machine.last_bus = tree.Cells(pci, "bus-range").at(1);
  const auto ranges = tree.Cells(pci, "ranges");
  for (size_t at = 0; at < ranges.size(); at += 7) {
    const std::map<uint32_t, GuestRange*> kinds = {
        {1, &machine.io}, {2, &machine.window32}, {3, &machine.window64}};
    *kinds.at(ranges[at] >> 24 & 3) = {Gpa(Cells64(ranges, at + 3)), Cells64(ranges, at + 5)};
    machine.window64_prefetchable |= (ranges[at] & 0x40000000) != 0;
  }
  const auto mask = tree.Cells(pci, "interrupt-map-mask");
  const auto map = tree.Cells(pci, "interrupt-map");
  for (uint32_t slot = 0; slot < 32; ++slot) {
    for (size_t at = 0; at < map.size(); at += 7) {
      if ((slot << 11 & mask.at(0)) == map[at])
        machine.gsi[slot * 4 + map[at + 3] - 1] = map[at + 5];
    }
  }
  machine.ioapic = Cells64(tree.Cells(Child(tree, "/", "interrupt-controller@"), "reg"), 0);
  machine.local_apic = Cells64(tree.Cells(Child(tree, "/", "local-apic@"), "reg"), 0);
  const std::string serial = Child(tree, "/isa", "serial@");
  machine.serial_port = tree.Cells(serial, "reg").at(1);
  machine.serial_gsi = tree.Cells(serial, "interrupts").at(0);
  machine.sleep_port = tree.Cells(Child(tree, "/isa", "sleep@"), "reg").at(1);
  const std::string reset = Child(tree, "/isa", "reset@");
  machine.reset_port = tree.Cells(reset, "reg").at(1);
  machine.reset_value = tree.Cells(reset, "reset-value").at(0);
  return machine;
}

void ExpectAgreement(const PlatformInfo& platform) {
  const Machine acpi = FromAcpi(platform);
  const Machine tree = FromDeviceTree(platform);
  EXPECT_EQ(acpi.cpus, tree.cpus);
  EXPECT_EQ(acpi.ecam, tree.ecam);
  EXPECT_EQ(acpi.io, tree.io);
  EXPECT_EQ(acpi.window32, tree.window32);
  EXPECT_EQ(acpi.window64, tree.window64);
  EXPECT_EQ(acpi.gsi, tree.gsi);
  EXPECT_EQ(acpi.gsi.size(), 128u);
  EXPECT_TRUE(acpi == tree) << "in something else";
}

TEST(Descriptions, AcpiAndDeviceTreeTellTheSameMachine) {
  if (!HasTool("acpiexec")) GTEST_SKIP() << "acpiexec (Debian: acpica-tools) is not installed";
  ExpectAgreement(DefaultPlatform(4));
  ExpectAgreement(OddPlatform());
}

}  // namespace
}  // namespace crossbar
