// BootInfo: what the boot protocol (PVH or Multiboot 1) handed over, copied out of low memory
// before anything can overwrite it. Modules stay where they are; the heap keeps clear of them.
//
// Filled once by the boot CPU, constant afterwards.
#pragma once

#include <stdint.h>

namespace guest {

struct Range {
  uint64_t start = 0;
  uint64_t size = 0;

  constexpr uint64_t end() const { return start + size; }
  constexpr bool Contains(uint64_t address) const { return address - start < size; }
  constexpr bool Overlaps(const Range& other) const {
    return start < other.end() && other.start < end();
  }
};

struct BootModule {
  Range range;
  char text[64];  // the module's string, cut
};

struct BootInfo {
  enum Protocol { kPvh, kMultiboot, kUnknown };
  Protocol protocol;
  uint32_t version;          // of hvm_start_info
  uint64_t rsdp;             // PVH: ACPI root pointer or 0
  uint32_t mem_lower_kib;    // Multiboot
  uint32_t mem_upper_kib;    // Multiboot
  uint32_t multiboot_flags;  // Multiboot
  char command_line[2048];
  BootModule modules[16];
  unsigned module_count;
  Range ram[32];  // usable RAM, ascending as given
  unsigned ram_count;
};

extern BootInfo boot_info;

// `magic` is the Multiboot magic in EAX or 0 for PVH, `address` what EBX pointed to.
void ReadBootInfo(uint32_t magic, uint64_t address);

}  // namespace guest
