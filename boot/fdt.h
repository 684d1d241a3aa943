// BuildDeviceTree: the platform as a flattened device tree, for guests that read one.
//
// The same facts as in the ACPI tables (boot/acpi.h), from the same PlatformInfo, in the standard
// bindings where there are any (Devicetree Specification 0.4, PCI bus binding 2.1,
// pci-host-ecam-generic, intel,ce4100-ioapic). Of our own are the nodes crossbar,* under /isa with
// s5-sleep-type (SLP_TYP of soft-off) and reset-value (what to write to reset). Called at start and
// at a reboot, on one thread. Stateless.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "boot/platform_info.h"

namespace crossbar {

// Error: libfdt's, with the node it was about.
Result<std::vector<std::byte>> BuildDeviceTree(const PlatformInfo& platform,
                                               std::string_view bootargs);

}  // namespace crossbar
