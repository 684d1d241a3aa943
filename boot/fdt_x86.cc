#include "boot/fdt_architecture.h"
#include "boot/x86_layout.h"

namespace crossbar {
namespace {

// Second cell of the IOAPIC's interrupt specifier, as the binding intel,ce4100-ioapic counts them.
// KVM's IOAPIC only tells edge from level, on which Linux's reading of the numbers agrees.
constexpr uint32_t kEdgeRising = 0;
constexpr uint32_t kLevelLow = 1;

// First cell of an ISA address: in I/O space (ISA bus binding 0.4).
constexpr uint32_t kIsaIo = 1;

InterruptSpecifier IoApicLevelLow(uint32_t gsi) {
  return {.cells = {gsi, kLevelLow}, .count = 2};
}

std::string SerialPath(const PlatformInfo& platform) {
  return fmt::format("/isa/serial@{:x}", platform.serial.port);
}

void WriteCpus(FdtWriter& fdt, const PlatformInfo& platform) {
  const auto cpus = fdt.Begin("cpus");
  fdt.Cells("#address-cells", {1});
  fdt.Cells("#size-cells", {0});
  for (const uint32_t id : platform.cpu_ids) {
    const auto cpu = fdt.Begin("cpu", id);
    fdt.String("device_type", "cpu");
    fdt.Cells("reg", {id});
  }
}

void WriteInterruptControllers(FdtWriter& fdt, const PlatformInfo& platform) {
  {
    const auto ioapic = fdt.Begin("interrupt-controller", platform.ioapic.value());
    fdt.String("compatible", "intel,ce4100-ioapic");
    fdt.Reg({platform.ioapic, 0x1000});
    fdt.Flag("interrupt-controller");
    fdt.Cells("#interrupt-cells", {2});
    fdt.Cells("#address-cells", {0});
    fdt.Cells("phandle", {kInterruptControllerPhandle});
  }
  const auto local_apic = fdt.Begin("local-apic", platform.local_apic.value());
  fdt.String("compatible", "intel,ce4100-lapic");
  fdt.Reg({platform.local_apic, 0x1000});
}

void WritePorts(FdtWriter& fdt, const char* compatible, uint16_t first, uint32_t count) {
  fdt.String("compatible", compatible);
  fdt.Cells("reg", {kIsaIo, first, count});
}

void WriteIsaDevices(FdtWriter& fdt, const PlatformInfo& platform) {
  const auto isa = fdt.Begin("isa");
  fdt.String("compatible", "isa");
  fdt.Cells("#address-cells", {2});
  fdt.Cells("#size-cells", {1});
  {
    const auto serial = fdt.Begin("serial", platform.serial.port);
    WritePorts(fdt, "ns16550a", platform.serial.port, 8);
    fdt.Cells("clock-frequency", {platform.serial.clock_hz});
    fdt.Cells("interrupts", {platform.serial.gsi, kEdgeRising});
  }
  {
    const auto debug_exit = fdt.Begin("debug-exit", platform.debug_exit_port);
    WritePorts(fdt, "crossbar,debug-exit", platform.debug_exit_port, 4);
  }
  {
    const auto boot_marker = fdt.Begin("boot-marker", platform.boot_marker_port);
    WritePorts(fdt, "crossbar,boot-marker", platform.boot_marker_port, 1);
  }
  {
    // The control register, then the status register (ACPI 6.5, 4.8.3.7).
    const auto sleep = fdt.Begin("sleep", platform.power.sleep_control_port);
    WritePorts(fdt, "crossbar,acpi-sleep", platform.power.sleep_control_port, 2);
    fdt.Cells("s5-sleep-type", {platform.power.s5_sleep_type});
  }
  const auto reset = fdt.Begin("reset", platform.power.reset_port);
  WritePorts(fdt, "crossbar,reset-control", platform.power.reset_port, 1);
  fdt.Cells("reset-value", {platform.power.reset_value});
}

constexpr GuestRange kReserved[] = {x86_layout::kAcpiTables, x86_layout::kResetVector};

}  // namespace

const FdtArchitecture kX86FdtArchitecture = {
    .compatible = "crossbar,x86",
    .stdout_path = SerialPath,
    .reserved = kReserved,
    .intx = IoApicLevelLow,
    .write_cpus = WriteCpus,
    .write_interrupt_controllers = WriteInterruptControllers,
    .write_devices = WriteIsaDevices,
};

}  // namespace crossbar
