#include "boot/acpi.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "boot/acpi_tables.h"
#include "boot/tables_testing.h"
#include "boot/x86_layout.h"

namespace crossbar {
namespace {

using namespace testing_tables;
using testing::ElementsAre;
using testing::HasSubstr;

std::string ErrorOf(const GuestRam& ram, const PlatformInfo& platform) {
  const auto rsdp = WriteAcpiTables(ram, platform);
  return rsdp ? "no error" : rsdp.error().ToString();
}

void ExpectByteRegister(const AcpiGenericAddress& address, uint16_t port) {
  EXPECT_EQ(address.space_id, 1);  // system I/O
  EXPECT_EQ(address.bit_width, 8);
  EXPECT_EQ(address.bit_offset, 0);
  EXPECT_EQ(address.access_size, 1);
  EXPECT_EQ(uint64_t{address.address}, port);
}

TEST(Acpi, TheRsdpIsWhereAGuestSearchesForIt) {
  const GuestRam ram = SmallRam();
  const auto rsdp_address = WriteAcpiTables(ram, DefaultPlatform());
  ASSERT_TRUE(rsdp_address);
  // ACPI 6.5, 5.2.5.1: on a 16-byte boundary from 0xe0000 to 0xfffff.
  EXPECT_TRUE(IsAligned(rsdp_address->value(), 16));
  EXPECT_TRUE((GuestRange{Gpa(0xe0000), 0x20000}.Contains(*rsdp_address)));
  const AcpiRsdp rsdp = ReadAcpi(ram, *rsdp_address).rsdp;
  EXPECT_EQ(std::memcmp(rsdp.signature.data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(rsdp.revision, 2);
  EXPECT_EQ(uint32_t{rsdp.length}, 36u);
  EXPECT_EQ(uint32_t{rsdp.rsdt_address}, 0u);
}

TEST(Acpi, TheXsdtListsFadtMadtAndMcfg) {
  const AcpiImage image = WriteAndReadAcpi(DefaultPlatform());
  EXPECT_THAT(image.signatures, ElementsAre("FACP", "APIC", "MCFG"));
  EXPECT_TRUE(image.tables.contains("DSDT"));
}

TEST(Acpi, EveryTableNamesUsAndItsRevision) {
  const AcpiImage image = WriteAndReadAcpi(DefaultPlatform());
  const std::map<std::string, int> revisions = {
      {"XSDT", 1}, {"FACP", 6}, {"APIC", 6}, {"MCFG", 1}, {"DSDT", 2}};
  ASSERT_EQ(image.tables.size(), revisions.size());
  for (const auto& [signature, table] : image.tables) {
    const auto header = ReadAs<AcpiHeader>(table);
    EXPECT_EQ(header.revision, revisions.at(signature)) << signature;
    EXPECT_EQ(std::memcmp(header.oem_id.data(), "CROSSB", 6), 0) << signature;
    EXPECT_EQ(std::memcmp(header.oem_table_id.data(), "CROSSBAR", 8), 0) << signature;
    EXPECT_TRUE(IsAligned(image.addresses.at(signature).value(), 16)) << signature;
  }
}

TEST(Acpi, TheFadtDeclaresAHardwareReducedPlatform) {
  const PlatformInfo platform = OddPlatform();
  const AcpiImage image = WriteAndReadAcpi(platform);
  const auto fadt = ReadAs<AcpiFadt>(image.tables.at("FACP"));
  EXPECT_EQ(uint32_t{fadt.header.length}, 276u);
  EXPECT_EQ(fadt.minor_version, 5);
  EXPECT_TRUE(fadt.flags & (1 << 20));           // HW_REDUCED_ACPI
  EXPECT_TRUE(fadt.flags & (1 << 10));           // RESET_REG_SUP
  EXPECT_EQ(fadt.iapc_boot_arch & (1 << 1), 0);  // no 8042
  EXPECT_TRUE(fadt.iapc_boot_arch & (1 << 2));   // VGA not present
  EXPECT_EQ(fadt.iapc_boot_arch & (1 << 3), 0);  // MSI is not "not supported"
  EXPECT_TRUE(fadt.iapc_boot_arch & (1 << 4));   // ASPM is not the guest's
  ExpectByteRegister(fadt.reset_register, platform.power.reset_port);
  EXPECT_EQ(fadt.reset_value, platform.power.reset_value);
  ExpectByteRegister(fadt.sleep_control, platform.power.sleep_control_port);
  ExpectByteRegister(fadt.sleep_status, platform.power.sleep_status_port);
  EXPECT_EQ(Gpa(fadt.x_dsdt), image.addresses.at("DSDT"));
  EXPECT_EQ(Gpa(fadt.dsdt), image.addresses.at("DSDT"));
  // No fixed hardware and no FACS.
  const auto is_zero = [](uint8_t byte) { return byte == 0; };
  EXPECT_TRUE(std::ranges::all_of(fadt.not_hardware_reduced1, is_zero));
  EXPECT_TRUE(std::ranges::all_of(fadt.not_hardware_reduced2, is_zero));
  EXPECT_EQ(uint32_t{fadt.firmware_ctrl}, 0u);
  EXPECT_EQ(uint64_t{fadt.x_firmware_ctrl}, 0u);
}

TEST(Acpi, TheMadtListsEveryCpuTheIoApicAndNmi) {
  const PlatformInfo platform = OddPlatform();
  const AcpiImage image = WriteAndReadAcpi(platform);
  const std::vector<std::byte>& table = image.tables.at("APIC");
  const auto madt = ReadAs<AcpiMadt>(table);
  EXPECT_EQ(uint32_t{madt.local_apic}, platform.local_apic.value());
  EXPECT_EQ(uint32_t{madt.flags}, 0u);  // no 8259
  std::vector<uint32_t> ids;
  int ioapics = 0;
  int nmis = 0;
  size_t at = sizeof(AcpiMadt);
  while (at < table.size()) {
    const auto type = std::to_integer<int>(table[at]);
    const auto length = std::to_integer<size_t>(table[at + 1]);
    ASSERT_GE(length, 2u);
    ASSERT_LE(at + length, table.size());
    if (type == 0) {
      const auto cpu = ReadAs<AcpiLocalApic>(table, at);
      EXPECT_EQ(cpu.processor_uid, cpu.apic_id);
      EXPECT_EQ(uint32_t{cpu.flags}, 1u);
      ids.push_back(cpu.apic_id);
    } else if (type == 1) {
      const auto ioapic = ReadAs<AcpiIoApic>(table, at);
      EXPECT_EQ(uint32_t{ioapic.address}, platform.ioapic.value());
      EXPECT_EQ(uint32_t{ioapic.gsi_base}, 0u);
      EXPECT_EQ(ioapic.id, 0);  // KVM's IOAPIC has id 0 after reset
      ++ioapics;
    } else if (type == 4) {
      const auto nmi = ReadAs<AcpiLocalApicNmi>(table, at);
      EXPECT_EQ(nmi.processor_uid, 255);
      EXPECT_EQ(uint16_t{nmi.flags}, 0);
      EXPECT_EQ(nmi.lint, 1);
      ++nmis;
    } else {
      ADD_FAILURE() << "entry of type " << type;
    }
    at += length;
  }
  EXPECT_EQ(ids, platform.cpu_ids);
  EXPECT_EQ(ioapics, 1);
  EXPECT_EQ(nmis, 1);
}

TEST(Acpi, TheMcfgHasTheEcamBaseOfBusZero) {
  const PlatformInfo platform = OddPlatform();
  const auto mcfg = ReadAs<AcpiMcfg>(WriteAndReadAcpi(platform).tables.at("MCFG"));
  EXPECT_EQ(mcfg.base + platform.pci.first_bus * kMiB, platform.pci.ecam.start.value());
  EXPECT_EQ(uint16_t{mcfg.segment}, 0);
  EXPECT_EQ(mcfg.first_bus, platform.pci.first_bus);
  EXPECT_EQ(mcfg.last_bus, platform.pci.last_bus);
}

TEST(Acpi, TheMostCpusFit) {
  const AcpiImage image = WriteAndReadAcpi(DefaultPlatform(254));
  EXPECT_EQ(image.tables.at("APIC").size(), sizeof(AcpiMadt) + 254 * sizeof(AcpiLocalApic) +
                                                sizeof(AcpiIoApic) + sizeof(AcpiLocalApicNmi));
}

TEST(Acpi, WritesNothingOutsideItsArea) {
  const GuestRam ram = SmallRam();
  ASSERT_TRUE(WriteAcpiTables(ram, DefaultPlatform(254)));
  const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
  const Gpa end = x86_layout::kAcpiTables.end();
  EXPECT_TRUE(std::ranges::all_of(*ram.At({Gpa(0), 0xe0000}), is_zero));
  EXPECT_TRUE(std::ranges::all_of(*ram.At({end, 2 * kMiB - end.value()}), is_zero));
}

TEST(Acpi, WritesTheSameAgainAfterAGuestScribbledOverIt) {
  const GuestRam ram = SmallRam();
  const auto rsdp = WriteAcpiTables(ram, OddPlatform());
  ASSERT_TRUE(rsdp);
  const auto before = ReadAcpi(ram, *rsdp).tables;
  std::ranges::fill(*ram.At(x86_layout::kAcpiTables), std::byte{0xee});
  const auto again = WriteAcpiTables(ram, OddPlatform());
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, *rsdp);
  EXPECT_EQ(ReadAcpi(ram, *rsdp).tables, before);
}

TEST(Acpi, RefusesWhatTheTablesCannotSay) {
  const GuestRam ram = SmallRam();
  PlatformInfo platform = DefaultPlatform();
  platform.cpu_ids.push_back(255);
  EXPECT_THAT(ErrorOf(ram, platform), HasSubstr("up to 254"));
  platform = DefaultPlatform();
  platform.pci.window64 = {};
  EXPECT_THAT(ErrorOf(ram, platform), HasSubstr("windows"));
  platform = DefaultPlatform();
  platform.pci.window32 = {Gpa(0xfffff000), 0x2000};
  EXPECT_THAT(ErrorOf(ram, platform), HasSubstr("0xfffff000-0x100000fff is not below 4 GiB"));
  platform = DefaultPlatform();
  platform.pci.last_bus = 63;
  EXPECT_THAT(ErrorOf(ram, platform), HasSubstr("does not fit buses 0-63"));
}

TEST(Acpi, SaysWhatItCouldNotWriteWhereThereIsNoRam) {
  const GuestRange bank{Gpa(0), 0x90000};
  const auto ram = GuestRam::Create(std::span(&bank, 1));
  ASSERT_TRUE(ram);
  EXPECT_THAT(ErrorOf(*ram, DefaultPlatform()), HasSubstr("cannot write the ACPI tables"));
}

}  // namespace
}  // namespace crossbar
