#include "boot/dsdt.h"

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "base/check.h"
#include "boot/acpi_tables.h"

namespace crossbar {
namespace {

#include "boot/dsdt.hex"  // unsigned char dsdt_aml_code[]

// One row of iasl's offset table (iasl -so). iasl's header declares this type under a guard; with
// our own type in its place the table is a constant that the compiler can look names up in.
struct AmlObject {
  const char* path;  // from the root
  uint16_t parent_opcode;
  uint32_t name_offset;
  uint8_t opcode;   // of the value: integer prefix or resource descriptor tag
  uint32_t offset;  // of the integer's bytes, the descriptor or the package opcode
  uint64_t value;   // of an integer
};
#define __AML_OFFSET_TABLE_H  // NOLINT(bugprone-reserved-identifier)
#define AML_OFFSET_TABLE_ENTRY constexpr AmlObject
#include "boot/dsdt.offset.inc"  // AML_OFFSET_TABLE_ENTRY DSDT_CROSSBAR_OffsetTable[]
#undef AML_OFFSET_TABLE_ENTRY

// AML encodings (ACPI 6.5, 20.2.3) and large and small resource descriptor tags (6.4.2, 6.4.3).
enum Opcode : uint8_t {
  kBytePrefix = 0x0a,
  kDWordPrefix = 0x0c,
  kPackage = 0x12,
  kIoPort = 0x47,
  kDWordAddress = 0x87,
  kWordAddress = 0x88,
  kExtendedInterrupt = 0x89,
  kQWordAddress = 0x8a,
};

constexpr uint32_t kPlaceholderStart = 0x10;
constexpr uint32_t kPlaceholderSize = 0x10;

// The offset of the object at `path`, or no build.
consteval size_t OffsetOf(std::string_view path, Opcode opcode) {
  for (const AmlObject& object : DSDT_CROSSBAR_OffsetTable) {
    if (object.path == nullptr || path != object.path) continue;
    if (object.opcode != opcode) throw "the object in dsdt.asl has another type";
    return object.offset;
  }
  throw "no such object in dsdt.asl";
}

class Dsdt {
 public:
  Dsdt() {
    const auto code = std::as_bytes(std::span(dsdt_aml_code));
    bytes_.assign(code.begin(), code.end());
  }

  template <typename T>
  void Replace(size_t offset, T placeholder, T value) {
    T found;
    CHECK(offset + sizeof(T) <= bytes_.size());
    std::memcpy(&found, &bytes_[offset], sizeof(T));
    CHECK(found == placeholder, "dsdt.asl at {:#x}: {:#x}, not {:#x}", offset, found, placeholder);
    std::memcpy(&bytes_[offset], &value, sizeof(T));
  }

  // A Word, DWord or QWord address space descriptor of that width (ACPI 6.5, 6.4.3.5): six bytes,
  // then granularity, minimum, maximum, translation and length.
  template <typename T>
  void ReplaceAddress(size_t offset, uint64_t start, uint64_t size) {
    const size_t fields = offset + 6;
    Replace<T>(fields + 1 * sizeof(T), kPlaceholderStart, static_cast<T>(start));
    Replace<T>(fields + 2 * sizeof(T), kPlaceholderStart + kPlaceholderSize - 1,
               static_cast<T>(start + size - 1));
    Replace<T>(fields + 4 * sizeof(T), kPlaceholderSize, static_cast<T>(size));
  }

  std::vector<std::byte> Seal() && {
    SealAcpiTable(bytes_);
    return std::move(bytes_);
  }

 private:
  std::vector<std::byte> bytes_;
};

void ReplacePci(Dsdt& dsdt, const PlatformInfo::Pci& pci) {
  const unsigned buses = pci.last_bus - pci.first_bus + 1u;
  dsdt.Replace<uint8_t>(OffsetOf("_SB_.PCI0._BBN", kBytePrefix), 0xcb, pci.first_bus);
  dsdt.ReplaceAddress<uint16_t>(OffsetOf("_SB_.PCI0.BUSN", kWordAddress), pci.first_bus, buses);
  dsdt.ReplaceAddress<uint32_t>(OffsetOf("_SB_.PCI0.PIOW", kDWordAddress), pci.io_base,
                                pci.io_size);
  dsdt.ReplaceAddress<uint32_t>(OffsetOf("_SB_.PCI0.MM32", kDWordAddress),
                                pci.window32.start.value(), pci.window32.size);
  constexpr size_t kWindow64 = OffsetOf("_SB_.PCI0.MM64", kQWordAddress);
  dsdt.ReplaceAddress<uint64_t>(kWindow64, pci.window64.start.value(), pci.window64.size);
  // Type-specific flags (ACPI 6.5, 6.4.3.5.5): bit 0 is writable, bits 1-2 say how cacheable.
  constexpr uint8_t kPrefetchable = 0x07;
  constexpr uint8_t kNonCacheable = 0x01;
  dsdt.Replace<uint8_t>(kWindow64 + 5, kPrefetchable,
                        pci.window64_prefetchable ? kPrefetchable : kNonCacheable);
  dsdt.ReplaceAddress<uint64_t>(OffsetOf("_SB_.ECAM.CFGW", kQWordAddress), pci.ecam.start.value(),
                                pci.ecam.size);
  constexpr size_t kGsis[] = {
      OffsetOf("_SB_.PCI0.GSI0", kDWordPrefix), OffsetOf("_SB_.PCI0.GSI1", kDWordPrefix),
      OffsetOf("_SB_.PCI0.GSI2", kDWordPrefix), OffsetOf("_SB_.PCI0.GSI3", kDWordPrefix)};
  for (uint32_t i = 0; i < 4; ++i) {
    dsdt.Replace<uint32_t>(kGsis[i], 0xcb000000 + i, pci.intx_gsi[i]);
  }
}

void ReplaceSerial(Dsdt& dsdt, const PlatformInfo::Serial& serial) {
  // ACPI 6.5, 6.4.2.5: tag, flags, minimum, maximum.
  constexpr size_t kPort = OffsetOf("_SB_.COM1.PORT", kIoPort);
  dsdt.Replace<uint16_t>(kPort + 2, 0xcb0, serial.port);
  dsdt.Replace<uint16_t>(kPort + 4, 0xcb0, serial.port);
  // ACPI 6.5, 6.4.3.6: tag, 16-bit length, flags, count, interrupts.
  constexpr size_t kInterrupt = OffsetOf("_SB_.COM1.INTR", kExtendedInterrupt);
  dsdt.Replace<uint32_t>(kInterrupt + 5, 0xcb000004, serial.gsi);
}

}  // namespace

std::vector<std::byte> MakeDsdt(const PlatformInfo& platform) {
  Dsdt dsdt;
  // Package opcode, one byte of length, element count, then the byte prefix of the first element.
  constexpr size_t kS5 = OffsetOf("_S5_", kPackage);
  dsdt.Replace<uint16_t>(kS5 + 3, 0xcb00 | kBytePrefix,
                         static_cast<uint16_t>(platform.power.s5_sleep_type << 8 | kBytePrefix));
  ReplacePci(dsdt, platform.pci);
  ReplaceSerial(dsdt, platform.serial);
  return std::move(dsdt).Seal();
}

}  // namespace crossbar
