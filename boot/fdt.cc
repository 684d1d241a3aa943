#include "boot/fdt.h"

#include <array>
#include <cstdint>
#include <vector>

#include "boot/fdt_architecture.h"
#include "boot/fdt_writer.h"

namespace crossbar {
namespace {

// First cell of a PCI address (PCI bus binding 2.1, 2.2.1.1).
constexpr uint32_t kPciIo = 0x01000000;
constexpr uint32_t kPciMemory32 = 0x02000000;
constexpr uint32_t kPciMemory64 = 0x03000000;
constexpr uint32_t kPciPrefetchable = 0x40000000;
constexpr unsigned kPciSlotShift = 11;

void WriteChosen(FdtWriter& fdt, std::string_view bootargs, const std::string& stdout_path) {
  const auto chosen = fdt.Begin("chosen");
  fdt.String("bootargs", bootargs);
  fdt.String("stdout-path", stdout_path);
}

void WriteMemory(FdtWriter& fdt, const PlatformInfo& platform) {
  for (const GuestRange& bank : platform.ram) {
    const auto memory = fdt.Begin("memory", bank.start.value());
    fdt.String("device_type", "memory");
    fdt.Reg(bank);
  }
}

// Windows have the same address on both sides of the bridge; I/O ports have no CPU address on x86
// and stand for themselves.
void WriteRanges(FdtWriter& fdt, const PlatformInfo::Pci& pci) {
  const auto start32 = LowCell(pci.window32.start.value());
  const uint64_t start64 = pci.window64.start.value();
  const uint32_t memory64 = kPciMemory64 | (pci.window64_prefetchable ? kPciPrefetchable : 0);
  // clang-format off
  fdt.Cells("ranges", {
      kPciIo,       0, pci.io_base, 0, pci.io_base, 0, pci.io_size,
      kPciMemory32, 0, start32,     0, start32,     0, LowCell(pci.window32.size),
      memory64, HighCell(start64), LowCell(start64), HighCell(start64), LowCell(start64),
          HighCell(pci.window64.size), LowCell(pci.window64.size)});
  // clang-format on
}

// The swizzle only depends on a slot's low two bits, so the mask makes four slots stand for all.
void WriteInterruptMap(FdtWriter& fdt, const PlatformInfo::Pci& pci, const FdtArchitecture& arch) {
  fdt.Cells("#interrupt-cells", {1});
  fdt.Cells("interrupt-map-mask", {3u << kPciSlotShift, 0, 0, 7});
  std::vector<uint32_t> map;
  map.reserve(128);
  for (uint32_t slot = 0; slot < 4; ++slot) {
    for (uint32_t pin = 0; pin < 4; ++pin) {
      const InterruptSpecifier parent = arch.intx(pci.intx_gsi[(slot + pin) % 4]);
      // INTA is 1 here (PCI bus binding 2.1, 2.2.6).
      map.insert(map.end(), {slot << kPciSlotShift, 0, 0, pin + 1, kInterruptControllerPhandle});
      map.insert(map.end(), parent.span().begin(), parent.span().end());
    }
  }
  fdt.Cells("interrupt-map", map);
}

void WritePci(FdtWriter& fdt, const PlatformInfo::Pci& pci, const FdtArchitecture& arch) {
  const auto node = fdt.Begin("pcie", pci.ecam.start.value());
  fdt.String("compatible", "pci-host-ecam-generic");
  fdt.String("device_type", "pci");
  fdt.Reg(pci.ecam);
  fdt.Cells("bus-range", {pci.first_bus, pci.last_bus});
  fdt.Cells("#address-cells", {3});
  fdt.Cells("#size-cells", {2});
  WriteRanges(fdt, pci);
  WriteInterruptMap(fdt, pci, arch);
}

// Room for everything, so that NOSPACE is a mistake here and not a matter of options.
size_t Capacity(const PlatformInfo& platform, std::string_view bootargs) {
  return 4 * kKiB + 96 * platform.cpu_ids.size() + 96 * platform.ram.size() + bootargs.size();
}

}  // namespace

Result<std::vector<std::byte>> BuildDeviceTree(const PlatformInfo& platform,
                                               std::string_view bootargs) {
  if (platform.power.sleep_status_port != platform.power.sleep_control_port + 1) {
    return Fail(
        "the device tree describes sleep registers side by side, not at ports {:#x} and {:#x}",
        platform.power.sleep_control_port, platform.power.sleep_status_port);
  }
  const FdtArchitecture& arch = kX86FdtArchitecture;
  FdtWriter fdt(Capacity(platform, bootargs), arch.reserved);
  {
    const auto root = fdt.Begin("");
    fdt.String("compatible", arch.compatible);
    fdt.String("model", "Crossbar");
    fdt.Cells("#address-cells", {2});
    fdt.Cells("#size-cells", {2});
    fdt.Cells("interrupt-parent", {kInterruptControllerPhandle});
    WriteChosen(fdt, bootargs, arch.stdout_path(platform));
    arch.write_cpus(fdt, platform);
    WriteMemory(fdt, platform);
    arch.write_interrupt_controllers(fdt, platform);
    WritePci(fdt, platform.pci, arch);
    arch.write_devices(fdt, platform);
  }
  return std::move(fdt).Finish();
}

}  // namespace crossbar
