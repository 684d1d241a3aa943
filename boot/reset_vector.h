// WriteResetVector: what a CPU finds at F000:FFF0, where a PC's firmware begins.
//
// A guest jumps there, in real mode, to have the machine reset. Linux with CONFIG_EFI does on every
// hardware-reduced platform without EFI: efi_reboot_required() makes it ask EFI, not the FADT's reset
// register, and EFI that is absent is followed by the BIOS (native_machine_emergency_restart).
// Written before the first KVM_RUN and again at a reboot, on one thread, while no vCPU runs.
#pragma once

#include "base/result.h"
#include "boot/platform_info.h"
#include "memory/guest_ram.h"

namespace crossbar {

// Fills x86_layout::kResetVector with 16-bit code that resets by `power`'s register, and nothing
// else. Error: there is no RAM there.
Result<> WriteResetVector(const GuestRam& ram, const PlatformInfo::Power& power);

}  // namespace crossbar
