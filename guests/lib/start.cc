// From boot.S to main(): the boot CPU's tables, the serial port, the platform.

#include <stdint.h>

#include "lib/apic.h"
#include "lib/boot_info.h"
#include "lib/cpu.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/platform.h"
#include "lib/power.h"
#include "lib/ring3.h"
#include "lib/serial.h"

extern "C" uint8_t cpu_stacks[CPU_STACK_SIZE];

namespace guest {
namespace {

constinit Cpu boot_cpu = {};

struct Boot {
  uint32_t magic;
  uint64_t address;
};

uint64_t Discover(void* argument) {
  const auto& boot = *static_cast<const Boot*>(argument);
  ReadBootInfo(boot.magic, boot.address);
  FindPlatform();
  return 0;
}

}  // namespace

extern "C" [[noreturn]] void StartBootCpu(uint32_t magic, uint64_t address) {
  const uint32_t apic_id = Cpuid(1).ebx >> 24;
  PrepareCpu(&boot_cpu, 0, apic_id, reinterpret_cast<uint64_t>(cpu_stacks) + CPU_STACK_SIZE);
  LoadDescriptorTables(&boot_cpu);
  Boot boot{magic, address};
  RunInRing3(Discover, &boot);
  LocalApicStart();
  SerialStart();
  MapPlatform();
  BootMarker(BOOT_MARKER_MAIN);
  GuestMain();
  DebugExit(0);
}

}  // namespace guest
