// The ACPI tables as they lie in guest memory (ACPI 6.5, 5.2; MCFG: PCI Firmware 3.3, 4.1.2).
//
// Plain packed little-endian structures for boot/acpi.cc, which fills them, and its tests, which
// read them back. Fields that are zero on hardware-reduced platforms are not named one by one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace crossbar {

#pragma pack(push, 1)

// 5.2.3.2
struct AcpiGenericAddress {
  uint8_t space_id = 0;
  uint8_t bit_width = 0;
  uint8_t bit_offset = 0;
  uint8_t access_size = 0;
  uint64_t address = 0;
};
inline constexpr uint8_t kAcpiSystemIo = 1;
inline constexpr uint8_t kAcpiByteAccess = 1;

// 5.2.5.3
struct AcpiRsdp {
  std::array<char, 8> signature;
  uint8_t checksum = 0;  // of the first 20 bytes
  std::array<char, 6> oem_id;
  uint8_t revision = 0;
  uint32_t rsdt_address = 0;
  uint32_t length = 0;
  uint64_t xsdt_address = 0;
  uint8_t extended_checksum = 0;  // of all
  std::array<uint8_t, 3> reserved{};
};
static_assert(sizeof(AcpiRsdp) == 36);

// 5.2.6. All tables but the RSDP begin with it.
struct AcpiHeader {
  std::array<char, 4> signature;
  uint32_t length = 0;
  uint8_t revision = 0;
  uint8_t checksum = 0;  // makes the sum of all bytes 0
  std::array<char, 6> oem_id;
  std::array<char, 8> oem_table_id;
  uint32_t oem_revision = 0;
  std::array<char, 4> creator_id;
  uint32_t creator_revision = 0;
};
static_assert(sizeof(AcpiHeader) == 36);

// 5.2.9
struct AcpiFadt {
  AcpiHeader header;
  uint32_t firmware_ctrl = 0;
  uint32_t dsdt = 0;
  uint8_t reserved1 = 0;
  uint8_t preferred_pm_profile = 0;
  std::array<uint8_t, 63> not_hardware_reduced1{};  // SCI_INT to CENTURY
  uint16_t iapc_boot_arch = 0;
  uint8_t reserved2 = 0;
  uint32_t flags = 0;
  AcpiGenericAddress reset_register{};
  uint8_t reset_value = 0;
  uint16_t arm_boot_arch = 0;
  uint8_t minor_version = 0;
  uint64_t x_firmware_ctrl = 0;
  uint64_t x_dsdt = 0;
  std::array<uint8_t, 96> not_hardware_reduced2{};  // X_PM1a_EVT_BLK to X_GPE1_BLK
  AcpiGenericAddress sleep_control{};
  AcpiGenericAddress sleep_status{};
  std::array<char, 8> hypervisor_vendor;
};
static_assert(offsetof(AcpiFadt, preferred_pm_profile) == 45);
static_assert(offsetof(AcpiFadt, iapc_boot_arch) == 109);
static_assert(offsetof(AcpiFadt, reset_register) == 116);
static_assert(offsetof(AcpiFadt, minor_version) == 131);
static_assert(offsetof(AcpiFadt, x_dsdt) == 140);
static_assert(offsetof(AcpiFadt, sleep_control) == 244);
static_assert(sizeof(AcpiFadt) == 276);

// Table 5.10 (IAPC_BOOT_ARCH)
inline constexpr uint16_t kFadtVgaNotPresent = 1 << 2;
inline constexpr uint16_t kFadtNoAspm = 1 << 4;
inline constexpr uint16_t kFadtNoCmosRtc = 1 << 5;
// Table 5.9 (Flags)
inline constexpr uint32_t kFadtWbinvd = 1 << 0;
inline constexpr uint32_t kFadtProcC1 = 1 << 2;
inline constexpr uint32_t kFadtNoFixedPowerButton = 1 << 4;
inline constexpr uint32_t kFadtNoFixedSleepButton = 1 << 5;
inline constexpr uint32_t kFadtNoFixedRtc = 1 << 6;
inline constexpr uint32_t kFadtResetRegister = 1 << 10;
inline constexpr uint32_t kFadtHeadless = 1 << 12;
inline constexpr uint32_t kFadtHardwareReduced = 1 << 20;

// 5.2.12
struct AcpiMadt {
  AcpiHeader header;
  uint32_t local_apic = 0;
  uint32_t flags = 0;  // bit 0: also has two 8259s
};
struct AcpiLocalApic {
  uint8_t type = 0;
  uint8_t length = sizeof(AcpiLocalApic);
  uint8_t processor_uid = 0;
  uint8_t apic_id = 0;
  uint32_t flags = 0;  // bit 0: enabled
};
struct AcpiIoApic {
  uint8_t type = 1;
  uint8_t length = sizeof(AcpiIoApic);
  uint8_t id = 0;
  uint8_t reserved = 0;
  uint32_t address = 0;
  uint32_t gsi_base = 0;
};
struct AcpiLocalApicNmi {
  uint8_t type = 4;
  uint8_t length = sizeof(AcpiLocalApicNmi);
  uint8_t processor_uid = 0;  // 255: all
  uint16_t flags = 0;         // 0: polarity and trigger as the bus has them
  uint8_t lint = 0;
};
static_assert(sizeof(AcpiMadt) == 44 && sizeof(AcpiLocalApic) == 8);
static_assert(sizeof(AcpiIoApic) == 12 && sizeof(AcpiLocalApicNmi) == 6);

struct AcpiMcfg {
  AcpiHeader header;
  uint64_t reserved1 = 0;
  uint64_t base = 0;  // of bus 0, also where the first bus is another
  uint16_t segment = 0;
  uint8_t first_bus = 0;
  uint8_t last_bus = 0;
  uint32_t reserved2 = 0;
};
static_assert(sizeof(AcpiMcfg) == 60);

#pragma pack(pop)

// The byte that makes the sum of `bytes` and itself zero.
inline uint8_t AcpiChecksum(std::span<const std::byte> bytes) {
  uint32_t sum = 0;
  for (const std::byte byte : bytes) sum += std::to_integer<uint32_t>(byte);
  return static_cast<uint8_t>(-sum);
}

// Sets the checksum of a table that begins with an AcpiHeader.
inline void SealAcpiTable(std::span<std::byte> table) {
  std::byte& checksum = table[offsetof(AcpiHeader, checksum)];
  checksum = std::byte{0};
  checksum = std::byte{AcpiChecksum(table)};
}

}  // namespace crossbar
