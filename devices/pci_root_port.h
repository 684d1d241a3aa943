// PciRootPort: a virtual PCIe root port: a type 1 header, a PCIe capability, and one bus behind it. It
// has no slot, no interrupt and no power states, so guests find nothing in it that needs a driver.
//
// On the root bus, and it outlives what is behind it. vCPU threads access its registers. Whoever writes
// one carries the consequence through all functions behind it before the write returns (G2): they ask
// forwarding() what the port lets through now, so of two writers at once the later one counts. No lock
// is held meanwhile (G10). Layouts: PCIe 6.0, 7.5.1.3 and 7.5.3.
#pragma once

#include <cstdint>

#include "base/locks.h"
#include "devices/pci_config_space.h"
#include "devices/pci_function.h"
#include "devices/pci_root.h"

namespace crossbar {

class PciRootPort final : public PciFunction {
 public:
  // QEMU's ids for a generic PCIe root port, for which no Linux has a quirk.
  static constexpr uint16_t kVendorId = 0x1b36;
  static constexpr uint16_t kDeviceId = 0x000c;

  struct Window {
    uint64_t first = 1;
    uint64_t last = 0;  // below `first`: closed
    // Whether all of [start, start + size) goes through.
    bool Contains(uint64_t start, uint64_t size) const {
      return first <= start && start <= last && size - 1 <= last - start;
    }
    bool operator==(const Window&) const = default;
  };
  struct Forwarding {
    Window memory;
    Window prefetchable;  // lets through any memory too
    Window ports;
    bool upstream = false;  // requests of the functions behind: DMA and MSI
    bool operator==(const Forwarding&) const = default;
  };

  PciRootPort();

  PciBus& bus() { return bus_; }
  Forwarding forwarding() const EXCLUDES(mutex_);

  uint32_t ReadConfig(uint16_t offset, unsigned size) override EXCLUDES(mutex_);
  void WriteConfig(uint16_t offset, unsigned size, uint32_t value) override EXCLUDES(mutex_);
  // What is behind it is reset by itself.
  void Reset() override EXCLUDES(mutex_);
  Downstream downstream() override EXCLUDES(mutex_);

 private:
  Forwarding Forwards() const REQUIRES(mutex_);
  // Down, all behind it is in reset (PCIe 6.0, 6.6.1) and answers nothing.
  bool LinkIsUp() const REQUIRES(mutex_);
  void AddExpressCapability() REQUIRES(mutex_);

  PciBus bus_;
  mutable Mutex mutex_;  // held for a moment
  PciConfigSpace config_ GUARDED_BY(mutex_);
  PciConfigSpace power_on_ GUARDED_BY(mutex_);
  uint16_t express_ GUARDED_BY(mutex_) = 0;  // offset of the PCIe capability
};

}  // namespace crossbar
