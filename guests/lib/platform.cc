#include "lib/platform.h"

#include "lib/command_line.h"
#include "lib/fdt.h"
#include "lib/string.h"

namespace guest {

constinit Platform platform;

namespace {

template <typename T, unsigned kSize>
void Append(T (&array)[kSize], unsigned* count, const T& value) {
  if (*count < kSize) array[(*count)++] = value;
}

void ReadMemoryNode(const FdtNode& node) {
  const FdtProperty reg = node.Find("reg");
  const uint32_t a = node.reg_address_cells();
  const uint32_t s = node.reg_size_cells();
  for (uint32_t i = 0; a + s != 0 && i + a + s <= reg.cell_count(); i += a + s) {
    const Range bank{reg.Cells(i, a), reg.Cells(i + a, s)};
    if (bank.size != 0) Append(platform.ram, &platform.ram_count, bank);
  }
}

void ReadPciNode(const FdtNode& node) {
  const FdtProperty reg = node.Find("reg");
  const uint32_t parent = node.reg_address_cells();
  platform.ecam = {reg.Cells(0, parent), reg.Cells(parent, node.reg_size_cells())};
  if (const FdtProperty buses = node.Find("bus-range")) {
    platform.first_bus = static_cast<uint8_t>(buses.Cell(0));
    platform.last_bus = static_cast<uint8_t>(buses.Cell(1));
  }
  const FdtProperty ranges = node.Find("ranges");
  const uint32_t entry = 3 + parent + 2;
  for (uint32_t i = 0; i + entry <= ranges.cell_count(); i += entry) {
    const Range window{ranges.Cells(i + 3, parent), ranges.Cells(i + 3 + parent, 2)};
    switch (ranges.Cell(i) >> 24 & 3) {  // IEEE 1275 PCI binding: the space code
      case 1:
        platform.io_window = window;
        break;
      case 2:
        platform.mmio_window = window;
        break;
      case 3:
        platform.mmio64_window = window;
        break;
    }
  }
}

void ReadIsaDevice(const FdtNode& node, const FdtProperty& compatible) {
  const auto port = static_cast<uint16_t>(node.Find("reg").Cell(1));
  if (compatible.HasText("ns16550a")) {
    platform.serial_port = port;
    platform.serial_gsi = node.Find("interrupts").Cell(0);
  } else if (compatible.HasText("crossbar,debug-exit")) {
    platform.debug_exit_port = port;
  } else if (compatible.HasText("crossbar,boot-marker")) {
    platform.boot_marker_port = port;
  } else if (compatible.HasText("crossbar,acpi-sleep")) {
    platform.sleep_port = port;
  } else if (compatible.HasText("crossbar,reset-control")) {
    platform.reset_port = port;
  }
}

void ReadNode(const FdtNode& node) {
  if (node.depth == 1 && Equal(node.name, "chosen")) {
    if (const FdtProperty text = node.Find("bootargs")) platform.command_line = text.Text();
    return;
  }
  const FdtProperty compatible = node.Find("compatible");
  const FdtProperty type = node.Find("device_type");
  if (type.HasText("cpu")) {
    Append(platform.cpu_ids, &platform.cpu_count, node.Find("reg").Cell(0));
  } else if (type.HasText("memory")) {
    ReadMemoryNode(node);
  } else if (compatible.HasText("pci-host-ecam-generic")) {
    ReadPciNode(node);
  } else if (node.depth == 2 && compatible) {
    ReadIsaDevice(node, compatible);
  }
}

// The last module, if it says so itself (DESIGN.md 7).
bool FindFdt(Fdt* fdt) {
  if (boot_info.module_count == 0) return false;
  const BootModule& last = boot_info.modules[boot_info.module_count - 1];
  return Equal(last.text, "fdt") &&
         fdt->Open(reinterpret_cast<const void*>(last.range.start), last.range.size);
}

}  // namespace

void FindPlatform() {
  platform.command_line = boot_info.command_line;
  Fdt fdt;
  if (FindFdt(&fdt)) {
    platform.from_fdt = true;
    fdt.ForEachNode(ReadNode);
    return;
  }
  for (unsigned i = 0; i < boot_info.ram_count; ++i) {
    Append(platform.ram, &platform.ram_count, boot_info.ram[i]);
  }
  const uint64_t cpus = CommandLineNumber("cpus", 1);
  platform.cpu_count = static_cast<unsigned>(cpus < MAX_CPUS ? cpus : MAX_CPUS);
  for (unsigned i = 0; i < platform.cpu_count; ++i) platform.cpu_ids[i] = i;
}

}  // namespace guest
