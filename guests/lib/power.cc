#include "lib/power.h"

#include "lib/io.h"
#include "lib/platform.h"

namespace guest {

void DebugExit(uint32_t value) {
  Out32(platform.debug_exit_port, value);
  Halt();
}

void PowerOff() {
  constexpr uint8_t kSleepEnable = 0x20;
  constexpr uint8_t kSoftOff = 5;
  Out8(platform.sleep_port, kSoftOff << 2 | kSleepEnable);
  Halt();
}

void Reset() {
  constexpr uint8_t kHardReset = 0x06;
  Out8(platform.reset_port, kHardReset);
  Halt();
}

void BootMarker(uint8_t value) {
  Out8(platform.boot_marker_port, value);
}

}  // namespace guest
