// The two ways to PCI configuration space: the memory-mapped one (ECAM, PCIe 6.0, 7.2.2) and the
// ports 0xcf8 and 0xcfc (PCI 3.0, 3.2.2.3.2).
//
// Owned by the MMIO and the port bus; called by several vCPU threads at once. They hold no lock: as
// on hardware, guests that share 0xcf8 between CPUs keep their own.
#pragma once

#include <atomic>
#include <cstdint>

#include "devices/acpi_power.h"
#include "devices/bus.h"
#include "devices/pci_root.h"

namespace crossbar {

// 1 MiB a bus, 4 KiB a function. Accesses that are larger than 4 bytes or misaligned become the
// fewest aligned ones, in ascending order.
class EcamWindow final : public BusDevice {
 public:
  // `root` outlives the window.
  explicit EcamWindow(PciRoot& root) : root_(root) {}

  // In bytes, from the root bus on.
  uint64_t size() const { return (uint64_t{root_.last_bus()} - root_.first_bus() + 1) << 20; }

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

 private:
  PciRoot& root_;
};

// The ports 0xcf8 to 0xcff. Whole dwords at 0xcf8 are the address register; bytes at 0xcf9 are the
// reset control register; any other access below 0xcfc is nobody's. 0xcfc to 0xcff are
// the data of the register addressed, while bit 31 enables them.
class Cf8Ports final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 8;

  // `root` and `reset_control` outlive the ports.
  Cf8Ports(PciRoot& root, ResetControl& reset_control)
      : root_(root), reset_control_(reset_control) {}

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;
  void Reset() { address_ = 0; }

 private:
  uint64_t ReadAddress(uint64_t offset, unsigned size) const;
  void WriteAddress(uint64_t offset, unsigned size, uint64_t value);
  uint64_t ReadData(uint64_t offset, unsigned size);
  void WriteData(uint64_t offset, unsigned size, uint64_t value);

  PciRoot& root_;
  ResetControl& reset_control_;
  // Each data access takes it once, so that none mixes two addresses.
  std::atomic<uint32_t> address_ = 0;
};

}  // namespace crossbar
