// The ways a VM ends or begins anew, and the boot markers. Any CPU.
#pragma once

#include <stdint.h>

namespace guest {

// The VMM exits with status (value << 1 | 1) & 0xff: 0 is success.
[[noreturn]] void DebugExit(uint32_t value);

// ACPI S5 through the hardware-reduced SLEEP_CONTROL_REG (ACPI 6.5, 4.8.3.7).
[[noreturn]] void PowerOff();

// A hard reset through port 0xcf9 (FADT RESET_REG).
[[noreturn]] void Reset();

// The VMM records the value with the time.
void BootMarker(uint8_t value);

}  // namespace guest
