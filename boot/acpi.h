// WriteAcpiTables: the platform as ACPI tables, for guests that take ACPI.
//
// A hardware-reduced platform (ACPI 6.5, 4.1): RSDP, XSDT, FADT, MADT, MCFG and DSDT. Written
// before the first KVM_RUN and again at a reboot, on one thread, while no vCPU runs. Stateless.
#pragma once

#include "base/result.h"
#include "boot/platform_info.h"
#include "memory/address.h"
#include "memory/guest_ram.h"

namespace crossbar {

// Writes x86_layout::kAcpiTables from its start and returns the address of the RSDP, which is where
// a guest that searches finds it (ACPI 6.5, 5.2.5.1). Error: `platform` has what these tables
// cannot say, or too much of it, or there is no RAM there.
Result<Gpa> WriteAcpiTables(const GuestRam& ram, const PlatformInfo& platform);

}  // namespace crossbar
