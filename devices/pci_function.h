// PciFunction: what answers configuration accesses at one (device, function) of a PCI bus, and the
// types that name such places.
//
// Owned by the PciBus it sits on (devices/pci_root.h). Called by several vCPU threads at once, and
// with no lock of the bus held (G10): a function may add or remove functions, itself included.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>

namespace crossbar {

class PciBus;

// A place on one bus.
struct PciDevfn {
  uint8_t device = 0;    // 0 to 31
  uint8_t function = 0;  // 0 to 7
  constexpr auto operator<=>(const PciDevfn&) const = default;
};

// A place in the segment. Bus numbers below bridges belong to the guest, which may change them.
struct PciAddress {
  uint8_t bus = 0;
  PciDevfn devfn;
  constexpr auto operator<=>(const PciAddress&) const = default;
};

class PciFunction {
 public:
  // What a bridge forwards configuration accesses to.
  struct Downstream {
    PciBus* bus = nullptr;    // as long-lived as the bridge
    uint8_t secondary = 0;    // the number of `bus`
    uint8_t subordinate = 0;  // the highest number behind it; below `secondary`: nobody is reached
  };

  virtual ~PciFunction() = default;

  // `size` is 1, 2 or 4; `offset` is a multiple of it below 4096. Values fill the low `size` bytes.
  virtual uint32_t ReadConfig(uint16_t offset, unsigned size) = 0;
  virtual void WriteConfig(uint16_t offset, unsigned size, uint32_t value) = 0;

  // Back to power-on values, as part of a reset of the machine.
  virtual void Reset() = 0;

  // Bridges answer with what the guest has programmed; every other function has nothing behind it.
  virtual Downstream downstream() { return {}; }

  // The bridge above resets its bus: back to reset values, and whatever is behind it too.
  virtual void OnBusReset() { Reset(); }
  // The bridge above forwards something else than before.
  virtual void OnForwardingChange() {}
};

}  // namespace crossbar

// "02.0"
template <>
struct fmt::formatter<crossbar::PciDevfn> : fmt::formatter<unsigned> {
  template <typename Context>
  auto format(const crossbar::PciDevfn& devfn, Context& context) const {
    return fmt::format_to(context.out(), "{:02x}.{:x}", devfn.device, devfn.function);
  }
};

// "00:02.0"
template <>
struct fmt::formatter<crossbar::PciAddress> : fmt::formatter<unsigned> {
  template <typename Context>
  auto format(const crossbar::PciAddress& address, Context& context) const {
    return fmt::format_to(context.out(), "{:02x}:{}", address.bus, address.devfn);
  }
};
