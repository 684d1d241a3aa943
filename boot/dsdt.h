// MakeDsdt: boot/dsdt.asl, as iasl compiled it at build time, with the values of one PlatformInfo.
//
// Used by boot/acpi.cc alone. Stateless; any thread. Names and types of what it patches are checked
// against iasl's offset table by the compiler; that the bytes are the placeholders is a CHECK.
#pragma once

#include <cstddef>
#include <vector>

#include "boot/platform_info.h"

namespace crossbar {

// A whole table, header and checksum included. `platform` has been through WriteAcpiTables' checks.
std::vector<std::byte> MakeDsdt(const PlatformInfo& platform);

}  // namespace crossbar
