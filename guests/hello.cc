// hello: the machine comes up. Prints how it was booted and what is there, and that ring 3 works.
//
// Check numbers:
//   1  a boot protocol was recognised
//   2  there is RAM where this image lies
//   3  a function ran in ring 3 and returned its value

#include "lib/boot_info.h"
#include "lib/check.h"
#include "lib/cpu.h"
#include "lib/guest.h"
#include "lib/platform.h"
#include "lib/print.h"
#include "lib/ring3.h"

namespace guest {
namespace {

const char* ProtocolName() {
  switch (boot_info.protocol) {
    case BootInfo::kPvh:
      return "PVH";
    case BootInfo::kMultiboot:
      return "Multiboot";
    default:
      return "unknown";
  }
}

bool RamContains(uint64_t address) {
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    if (platform.ram[i].Contains(address)) return true;
  }
  return false;
}

// Sums 1 to the argument, and proves where.
uint64_t Sum(void* argument) {
  if (InRing0()) return 0;
  uint64_t sum = 0;
  for (uint64_t i = 1; i <= *static_cast<uint64_t*>(argument); ++i) {
    sum += i;
    asm volatile("" : "+r"(sum));
  }
  return sum;
}

}  // namespace

void GuestMain() {
  Print("Hello from a Crossbar guest.\n");
  Print("  boot     %s, modules: %u, %s\n", ProtocolName(), boot_info.module_count,
        platform.from_fdt ? "device tree" : "no device tree");
  Print("  CPUs     %u, this one has APIC id %u\n", platform.cpu_count, ThisCpu().apic_id);
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    const Range& bank = platform.ram[i];
    Print("  RAM      0x%09lx-0x%09lx (%lu KiB)\n", bank.start, bank.end() - 1, bank.size >> 10);
  }
  Print("  command  \"%s\"\n", platform.command_line);
  CHECK(1, boot_info.protocol != BootInfo::kUnknown);
  CHECK(2, RamContains(reinterpret_cast<uint64_t>(&ProtocolName)));

  uint64_t count = 1'000'000;
  const uint64_t sum = RunInRing3(Sum, &count);
  CHECK(3, sum == count * (count + 1) / 2, "sum %lu", sum);
  Print("  ring 3   works: the sum of 1 to %lu is %lu\n", count, sum);
}

}  // namespace guest
