// FdtArchitecture: the part of the device tree that one CPU architecture writes.
//
// boot/fdt.cc writes what is the same everywhere (chosen, memory, the PCI host bridge) and calls
// these in between; boot/fdt_x86.cc has x86's. A GICv3, PSCI and PL011 machine is one more value.
// Constants and stateless functions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "boot/fdt_writer.h"
#include "boot/platform_info.h"

namespace crossbar {

// Interrupts of devices go to the controller with this phandle.
inline constexpr uint32_t kInterruptControllerPhandle = 1;

// An interrupt in the words of that controller, which has no #address-cells.
struct InterruptSpecifier {
  std::array<uint32_t, 3> cells{};
  size_t count = 0;
  std::span<const uint32_t> span() const { return std::span(cells).first(count); }
};

struct FdtArchitecture {
  const char* compatible = nullptr;  // of the root
  std::string (*stdout_path)(const PlatformInfo&) = nullptr;
  std::span<const GuestRange> reserved;  // memory that is not free, but is in a memory node
  InterruptSpecifier (*intx)(uint32_t gsi) = nullptr;             // a PCI INTx, level triggered
  void (*write_cpus)(FdtWriter&, const PlatformInfo&) = nullptr;  // the node /cpus
  void (*write_interrupt_controllers)(FdtWriter&, const PlatformInfo&) = nullptr;
  void (*write_devices)(FdtWriter&, const PlatformInfo&) = nullptr;  // all else that is not PCI
};

extern const FdtArchitecture kX86FdtArchitecture;

}  // namespace crossbar
