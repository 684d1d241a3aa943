// Platform: the machine as described by the device tree, or, without one, by the boot protocol's
// memory map and the places where such things usually are. Constant after start.
#pragma once

#include <stdint.h>

#include "lib/boot_info.h"
#include "lib/layout.h"

namespace guest {

// The initial values are the usual places: enough to print and to exit before FindPlatform has run.
struct Platform {
  bool from_fdt = false;
  const char* command_line = "";  // /chosen/bootargs, else the boot protocol's

  Range ram[32] = {};
  unsigned ram_count = 0;

  uint32_t cpu_ids[MAX_CPUS] = {};  // APIC ids; without a tree 0 .. cpus=N - 1
  unsigned cpu_count = 0;

  Range ecam = {};  // size 0 without a tree
  uint8_t first_bus = 0;
  uint8_t last_bus = 255;
  Range io_window = {};    // PCI I/O, as port numbers
  Range mmio_window = {};  // 32-bit
  Range mmio64_window = {};

  uint16_t serial_port = 0x3f8;
  uint32_t serial_gsi = 4;
  uint16_t debug_exit_port = 0xf4;
  uint16_t boot_marker_port = BOOT_MARKER_PORT;
  uint16_t sleep_port = 0x600;
  uint16_t reset_port = 0xcf9;
};

extern Platform platform;

// From boot_info and the tree in its last module. Touches memory only: may run in ring 3.
void FindPlatform();

}  // namespace guest
