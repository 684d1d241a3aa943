// poweroff: ACPI power off (S5) through SLEEP_CONTROL_REG. The VMM's process ends with status 0.
//
// Check numbers:
//   1  the sleep status register does not say that the machine just woke up

#include "lib/check.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/platform.h"
#include "lib/power.h"
#include "lib/print.h"

namespace guest {

void GuestMain() {
  constexpr uint8_t kWakeStatus = 0x80;
  const uint8_t status = In8(static_cast<uint16_t>(platform.sleep_port + 1));
  CHECK(1, !(status & kWakeStatus), "sleep status 0x%x", status);
  Print("Powering off.\n");
  PowerOff();
}

}  // namespace guest
