// PciRoot: the PCI segment: which function answers at which address. PciBus: one bus of it.
//
// Owned by Vm. vCPU threads read and write through EcamWindow and Cf8Ports (devices/pci_access.h);
// any thread may add and remove functions. No lock is held while a function runs (G10). Where no
// function is, reads are all ones and writes are dropped.
//
// Callers name a function by its address in the segment alone, so bridges need nothing here: one is
// a PciFunction that owns a PciBus and says which bus numbers the guest gave it (downstream).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/locks.h"
#include "base/result.h"
#include "devices/pci_config_space.h"
#include "devices/pci_function.h"

namespace crossbar {

// The functions on one bus. Once Remove has returned, no access to that function starts; one
// that was under way may still be finishing, and holds the function until it has.
class PciBus {
 public:
  struct Target {
    std::shared_ptr<PciFunction> function;  // null: nobody answers
    bool multifunction = false;             // the device has functions other than 0
  };

  PciBus();

  // Error: the place is taken, or is none.
  Result<> Add(PciDevfn devfn, std::shared_ptr<PciFunction> function) EXCLUDES(mutex_);
  // What was there; null where nothing was.
  std::shared_ptr<PciFunction> Remove(PciDevfn devfn) EXCLUDES(mutex_);

  // Who answers at `address`, on this bus, whose number is `number`, or behind one of its bridges.
  Target Route(PciAddress address, uint8_t number) const EXCLUDES(mutex_);

  // All functions on this bus, each bridge followed by what is behind it. For resets and shutdown.
  std::vector<std::shared_ptr<PciFunction>> Functions() const EXCLUDES(mutex_);

 private:
  // Never changed once it is table_: accesses go on with the one they have.
  using Table = std::array<std::shared_ptr<PciFunction>, 256>;

  std::shared_ptr<const Table> Snapshot() const EXCLUDES(mutex_);

  mutable Mutex mutex_;
  std::shared_ptr<const Table> table_ GUARDED_BY(mutex_);
};

class PciRoot {
 public:
  // The segment has buses `first_bus` to `last_bus`; `first_bus` is the root bus.
  PciRoot(uint8_t first_bus, uint8_t last_bus) : first_bus_(first_bus), last_bus_(last_bus) {
    CHECK(first_bus <= last_bus, "buses {} to {}", first_bus, last_bus);
  }

  PciBus& root_bus() { return root_bus_; }
  uint8_t first_bus() const { return first_bus_; }
  uint8_t last_bus() const { return last_bus_; }

  // `size` is 1, 2 or 4; `offset` is a multiple of it below 4096. The multifunction bit of Header
  // Type is this table's knowledge, not the function's: it reads as what is there now.
  uint32_t Read(PciAddress address, uint16_t offset, unsigned size);
  void Write(PciAddress address, uint16_t offset, unsigned size, uint32_t value);

  // The PCI part of a machine reset (G8): no function masters the bus any more, then none decodes,
  // then each is reset. No vCPU runs meanwhile.
  void Reset();

  // No function masters the bus any more (G5, G8). Vcpus may run; then one may switch it on again.
  void StopBusMastering();

 private:
  PciBus::Target Find(PciAddress address) const;

  const uint8_t first_bus_;
  const uint8_t last_bus_;
  PciBus root_bus_;
};

// The host bridge at 00.0: a type 0 header that is all read-only, without BARs or capabilities.
// QEMU's ids for a generic PCIe host bridge, for which no Linux has a quirk.
class HostBridge : public PciFunction {
 public:
  static constexpr uint16_t kVendorId = 0x1b36;
  static constexpr uint16_t kDeviceId = 0x0008;

  HostBridge();

  uint32_t ReadConfig(uint16_t offset, unsigned size) override {
    return config_.Read(offset, size);
  }
  void WriteConfig(uint16_t, unsigned, uint32_t) override {}
  void Reset() override {}

 private:
  PciConfigSpace config_;  // constant after construction
};

}  // namespace crossbar
