#include "boot/acpi.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "boot/acpi_tables.h"
#include "boot/dsdt.h"
#include "boot/x86_layout.h"

namespace crossbar {
namespace {

constexpr GuestRange kArea = x86_layout::kAcpiTables;
static_assert(IsAligned(kArea.start.value(), 16));  // the RSDP, ACPI 6.5, 5.2.5.1

// MADT and FADT of ACPI 6.5.
constexpr uint8_t kFadtRevision = 6;
constexpr uint8_t kFadtMinorRevision = 5;
constexpr uint8_t kMadtRevision = 6;

AcpiHeader MakeHeader(std::array<char, 4> signature, uint8_t revision) {
  return {.signature = signature,
          .revision = revision,
          .oem_id = {'C', 'R', 'O', 'S', 'S', 'B'},
          .oem_table_id = {'C', 'R', 'O', 'S', 'S', 'B', 'A', 'R'},
          .oem_revision = 1,
          .creator_id = {'C', 'R', 'S', 'B'},
          .creator_revision = 1};
}

template <typename T>
void Append(std::vector<std::byte>& bytes, const T& object) {
  const auto data = std::as_bytes(std::span(&object, 1));
  bytes.insert(bytes.end(), data.begin(), data.end());
}

// The area's content before it is written at once.
class TableArea {
 public:
  TableArea() : bytes_(sizeof(AcpiRsdp)) { bytes_.reserve(8 * kKiB); }

  // Completes the header of `table` and appends it. Returns where it will be.
  Gpa Add(std::span<std::byte> table) {
    const auto length = static_cast<uint32_t>(table.size());
    std::memcpy(&table[offsetof(AcpiHeader, length)], &length, sizeof(length));
    SealAcpiTable(table);
    bytes_.resize(AlignUp(bytes_.size(), 16));
    const Gpa address = kArea.start + bytes_.size();
    bytes_.insert(bytes_.end(), table.begin(), table.end());
    return address;
  }
  template <typename T>
  requires std::is_trivially_copyable_v<T> Gpa Add(T table) {
    return Add(std::as_writable_bytes(std::span(&table, 1)));
  }

  void SetRsdp(const AcpiRsdp& rsdp) { std::memcpy(bytes_.data(), &rsdp, sizeof(rsdp)); }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

AcpiGenericAddress BytePort(uint16_t port) {
  return {.space_id = kAcpiSystemIo,
          .bit_width = 8,
          .bit_offset = 0,
          .access_size = kAcpiByteAccess,
          .address = port};
}

AcpiFadt MakeFadt(const PlatformInfo::Power& power, Gpa dsdt) {
  AcpiFadt fadt{.header = MakeHeader({'F', 'A', 'C', 'P'}, kFadtRevision),
                .hypervisor_vendor = {'C', 'R', 'O', 'S', 'S', 'B', 'A', 'R'}};
  fadt.preferred_pm_profile = 4;  // enterprise server
  // No keyboard controller, VGA or CMOS clock to probe. MSI is allowed by the absence of its flag.
  // ASPM is the host's: the links of passed-through devices are not the guest's.
  fadt.iapc_boot_arch = kFadtVgaNotPresent | kFadtNoAspm | kFadtNoCmosRtc;
  fadt.flags = kFadtWbinvd | kFadtProcC1 | kFadtNoFixedPowerButton | kFadtNoFixedSleepButton |
               kFadtNoFixedRtc | kFadtResetRegister | kFadtHeadless | kFadtHardwareReduced;
  fadt.reset_register = BytePort(power.reset_port);
  fadt.reset_value = power.reset_value;
  fadt.minor_version = kFadtMinorRevision;
  fadt.dsdt = static_cast<uint32_t>(dsdt.value());
  fadt.x_dsdt = dsdt.value();
  fadt.sleep_control = BytePort(power.sleep_control_port);
  fadt.sleep_status = BytePort(power.sleep_status_port);
  return fadt;
}

std::vector<std::byte> MakeMadt(const PlatformInfo& platform) {
  std::vector<std::byte> madt;
  madt.reserve(sizeof(AcpiMadt) + platform.cpu_ids.size() * sizeof(AcpiLocalApic) + 64);
  Append(madt, AcpiMadt{.header = MakeHeader({'A', 'P', 'I', 'C'}, kMadtRevision),
                        .local_apic = static_cast<uint32_t>(platform.local_apic.value())});
  for (const uint32_t id : platform.cpu_ids) {
    Append(madt, AcpiLocalApic{.processor_uid = static_cast<uint8_t>(id),
                               .apic_id = static_cast<uint8_t>(id),
                               .flags = 1});
  }
  Append(madt, AcpiIoApic{.address = static_cast<uint32_t>(platform.ioapic.value())});
  Append(madt, AcpiLocalApicNmi{.processor_uid = 255, .lint = 1});
  return madt;
}

AcpiMcfg MakeMcfg(const PlatformInfo::Pci& pci) {
  return {.header = MakeHeader({'M', 'C', 'F', 'G'}, 1),
          .base = pci.ecam.start.value() - pci.first_bus * kMiB,
          .first_bus = pci.first_bus,
          .last_bus = pci.last_bus};
}

std::vector<std::byte> MakeXsdt(std::initializer_list<Gpa> tables) {
  std::vector<std::byte> xsdt;
  Append(xsdt, MakeHeader({'X', 'S', 'D', 'T'}, 1));
  for (const Gpa table : tables) Append(xsdt, table.value());
  return xsdt;
}

AcpiRsdp MakeRsdp(Gpa xsdt) {
  AcpiRsdp rsdp{.signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '},
                .oem_id = {'C', 'R', 'O', 'S', 'S', 'B'},
                .revision = 2,
                .length = sizeof(AcpiRsdp),
                .xsdt_address = xsdt.value()};
  const auto bytes = std::as_bytes(std::span(&rsdp, 1));
  rsdp.checksum = AcpiChecksum(bytes.first(20));
  rsdp.extended_checksum = AcpiChecksum(bytes);
  return rsdp;
}

// What the tables' fields cannot hold.
Result<> CheckExpressible(const PlatformInfo& platform) {
  const PlatformInfo::Pci& pci = platform.pci;
  if (std::ranges::any_of(platform.cpu_ids, [](uint32_t id) { return id > 254; })) {
    return Fail("ACPI local APIC entries hold ids up to 254");
  }
  if (pci.window32.empty() || pci.window64.empty() || pci.io_size == 0) {
    return Fail("the PCI host bridge needs all three windows");
  }
  if (pci.window32.last().value() >= k4GiB) {
    return Fail("PCI window {} is not below 4 GiB", pci.window32);
  }
  if (pci.ecam.size != (pci.last_bus - pci.first_bus + 1u) * kMiB) {
    return Fail("ECAM {} does not fit buses {}-{}", pci.ecam, pci.first_bus, pci.last_bus);
  }
  return {};
}

}  // namespace

Result<Gpa> WriteAcpiTables(const GuestRam& ram, const PlatformInfo& platform) {
  TRY(CheckExpressible(platform));
  TableArea area;
  std::vector<std::byte> dsdt = MakeDsdt(platform);
  const Gpa fadt = area.Add(MakeFadt(platform.power, area.Add(dsdt)));
  std::vector<std::byte> madt_table = MakeMadt(platform);
  const Gpa madt = area.Add(madt_table);
  const Gpa mcfg = area.Add(MakeMcfg(platform.pci));
  std::vector<std::byte> xsdt_table = MakeXsdt({fadt, madt, mcfg});
  area.SetRsdp(MakeRsdp(area.Add(xsdt_table)));
  if (area.bytes().size() > kArea.size) {
    return Fail("the ACPI tables take {} bytes; {} hold {}", area.bytes().size(), kArea,
                kArea.size);
  }
  TRY(Within(ram.Write(kArea.start, area.bytes()), [] { return "cannot write the ACPI tables"; }));
  return kArea.start;
}

}  // namespace crossbar
