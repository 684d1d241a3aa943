// Where the loaders put what they write into the guest's first MiB: every such address, once.
//
// A loader claims (boot/placement.h) the ranges it uses before the kernel's segments, so that a
// kernel linked over one of them is an error. Page 0 stays free: the PVH ABI reads address 0 as
// "not present", and it is the real-mode interrupt table. Constants only.
#pragma once

#include <cstdint>

#include "memory/address.h"

namespace crossbar::x86_layout {

inline constexpr GuestRange kGdt{Gpa(0x1000), 0x20};
// Linux boot_params, hvm_start_info or the Multiboot information structure.
inline constexpr GuestRange kBootInfo{Gpa(0x2000), 0x1000};
inline constexpr GuestRange kMemoryMap{Gpa(0x3000), 0x1000};   // PVH and Multiboot
inline constexpr GuestRange kModuleList{Gpa(0x4000), 0x1000};  // PVH and Multiboot
inline constexpr GuestRange kPageTables{Gpa(0x5000), 0x6000};  // PML4, PDPT, 4 page directories
// The command line and the modules' strings, each with its terminating zero.
inline constexpr GuestRange kStrings{Gpa(0x10000), 0x10000};

// VGA memory and ROMs of a PC: RAM behind it, but no guest expects to own it. The ACPI tables are
// where ACPI 6.5, 5.2.5.1 lets a kernel search for the RSDP, up to F000:FFF0.
inline constexpr GuestRange kLegacyHole{Gpa(0xa0000), 0x60000};
inline constexpr GuestRange kAcpiTables{Gpa(0xe0000), 0x1fff0};
inline constexpr GuestRange kResetVector{Gpa(0xffff0), 0x10};

// Nothing is placed by choice below here.
inline constexpr Gpa kHighMemory{kMiB};

// Selectors in kGdt: __BOOT_CS and __BOOT_DS (Linux Documentation/arch/x86/boot.rst).
inline constexpr uint16_t kCodeSelector = 0x10;
inline constexpr uint16_t kDataSelector = 0x18;

static_assert(kLegacyHole.Contains(kAcpiTables) && kLegacyHole.Contains(kResetVector));
static_assert(!kAcpiTables.Overlaps(kResetVector));

}  // namespace crossbar::x86_layout
