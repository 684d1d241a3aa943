// What sysfs says of a PCI device of the host. Values; any thread.
// Sources: Documentation/ABI/testing/sysfs-bus-pci, drivers/pci/pci-sysfs.c.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/backing.h"

namespace crossbar {

// Where sysfs and the VFIO groups are; elsewhere in tests.
struct HostRoots {
  std::string sys = "/sys";
  std::string dev = "/dev";
};

struct HostPciDevice {
  std::string address;  // "0000:01:00.0"
  std::string path;     // its folder in sysfs, without links
  std::string driver;   // "" where none is bound
  bool bridge = false;  // PCI-to-PCI: VFIO takes none
  std::optional<unsigned> group;
  std::array<PhysicalRange, 7> resources;  // the six BARs and the ROM; size 0: none
};

// "0000:01:00.0"; Error: `text` is no such address. The domain may be left out.
Result<std::string> ParsePciAddress(const std::string& text);

// Error: no such device.
Result<HostPciDevice> FindHostPciDevice(const HostRoots& roots, const std::string& address);

// All devices of IOMMU group `group`.
Result<std::vector<HostPciDevice>> DevicesOfGroup(const HostRoots& roots, unsigned group);

// The shell command that takes `devices` from their drivers and gives them to vfio-pci.
std::string HowToBind(const HostRoots& roots, const std::vector<HostPciDevice>& devices);

}  // namespace crossbar
