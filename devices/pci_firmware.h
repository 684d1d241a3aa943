// What firmware does to PCI devices before a guest starts: numbers the buses, and gives each BAR an address
// in the host bridge's windows, and in those of the bridges above it. Through the guest's own way into
// config space, so that what the guest finds is what its writes would have made.
#pragma once

#include <array>
#include <cstdint>

#include "base/result.h"
#include "devices/pci_root.h"
#include "memory/address.h"

namespace crossbar {

struct PciWindows {
  GuestRange memory32;
  GuestRange memory64;
  GuestRange ports;
  // Where INTA to INTD of device 0 arrive; those of device d are d further round.
  std::array<uint32_t, 4> intx_gsi{};
};

// Assigns the BARs of all functions, largest first, each aligned to its size: 64-bit memory BARs in
// memory64, or below where that is full; the others in memory32 and ports. Expansion ROMs get an address
// and stay off. Interrupt Line becomes the GSI. Decode stays off, but bridges forward: behind one, a
// 64-bit BAR needs to be prefetchable to be in memory64. Error: a BAR, or what is behind a bridge, does
// not fit; it says which, and its size.
Result<> AssignPciResources(PciRoot& root, const PciWindows& windows);

}  // namespace crossbar
