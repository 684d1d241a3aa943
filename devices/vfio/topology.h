// What the PCI hierarchy of the host does with a device's requests on their way up. Where a component
// does not redirect them to the root complex (ACS, PCIe 6.0, 6.12), one to an address on the bus of a
// peer turns there, and no IOMMU sees it. What cannot be seen to redirect does not.
//
// Values, read from sysfs; any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "devices/vfio/sysfs.h"
#include "memory/address.h"

namespace crossbar {

// A place where requests of a device may turn.
struct PciTurn {
  std::string reason;               // for people: "0000:02:00.0 has no ACS"
  std::vector<std::string> peers;   // the branches they may turn into: folders in sysfs
  std::vector<GuestRange> windows;  // addresses that do not come through to the root: those of the
                                    // bridge above, or in the root complex of all that are involved
};

// On the way from `device` to its root complex, the nearest first.
std::vector<PciTurn> TurnsOf(const HostPciDevice& device);

// Why a device with such `turns` reaches the BARs of `target` by their addresses on the bus; nothing
// where it does not.
std::optional<std::string> ReachedPastIommu(const std::vector<PciTurn>& turns,
                                            const HostPciDevice& target);

}  // namespace crossbar
