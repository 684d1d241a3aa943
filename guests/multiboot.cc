// multiboot: entered by the Multiboot 1 protocol, checks and prints what it was given.
//
// Check numbers:
//   1  EAX held the Multiboot magic
//   2  mem_lower is 1 to 640 KiB, mem_upper is not 0
//   3  the memory map has RAM at 1 MiB, and as much above as mem_upper says
//   4  a command line was given (it may be empty)
//   5  each module lies in RAM, clear of this image

#include <stdint.h>

#include "lib/boot_info.h"
#include "lib/check.h"
#include "lib/guest.h"
#include "lib/print.h"
#include "lib/ring3.h"

extern "C" uint8_t image_start[], image_end[];

namespace guest {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint32_t kHasMemory = 1 << 0, kHasCommandLine = 1 << 2, kHasMemoryMap = 1 << 6;

const Range* RamAt(uint64_t address) {
  for (unsigned i = 0; i < boot_info.ram_count; ++i) {
    if (boot_info.ram[i].Contains(address)) return &boot_info.ram[i];
  }
  return nullptr;
}

// The sum of all bytes.
uint64_t Checksum(void* argument) {
  const auto& range = *static_cast<const Range*>(argument);
  const auto* bytes = reinterpret_cast<const uint8_t*>(range.start);
  uint64_t sum = 0;
  for (uint64_t i = 0; i < range.size; ++i) sum += bytes[i];
  return sum;
}

void CheckMemory() {
  CHECK(2, boot_info.multiboot_flags & kHasMemory);
  const uint32_t lower = boot_info.mem_lower_kib;
  const uint32_t upper = boot_info.mem_upper_kib;
  Print("  memory   %u KiB lower, %u KiB upper\n", lower, upper);
  CHECK(2, lower > 0 && lower <= 640, "mem_lower %u", lower);
  CHECK(2, upper > 0);
  CHECK(3, boot_info.multiboot_flags & kHasMemoryMap);
  for (unsigned i = 0; i < boot_info.ram_count; ++i) {
    const Range& bank = boot_info.ram[i];
    Print("  RAM      0x%09lx-0x%09lx (%lu KiB)\n", bank.start, bank.end() - 1, bank.size >> 10);
  }
  const Range* bank = RamAt(kMiB);
  CHECK(3, bank != nullptr, "no RAM at 1 MiB");
  const uint64_t mapped = (bank->end() - kMiB) >> 10;
  CHECK(3, mapped == upper, "the map says %lu KiB, mem_upper %u", mapped, upper);
}

void CheckModules() {
  const auto start = reinterpret_cast<uint64_t>(image_start);
  const Range image{start, reinterpret_cast<uint64_t>(image_end) - start};
  for (unsigned i = 0; i < boot_info.module_count; ++i) {
    BootModule& module = boot_info.modules[i];
    const Range& range = module.range;
    const Range* bank = RamAt(range.start);
    CHECK(5, bank != nullptr && range.end() <= bank->end(), "module %u at 0x%lx", i, range.start);
    CHECK(5, !range.Overlaps(image), "module %u at 0x%lx", i, range.start);
    Print("  module   \"%s\" %lu bytes, sum 0x%lx\n", module.text, range.size,
          RunInRing3(Checksum, &module.range));
  }
}

}  // namespace

void GuestMain() {
  CHECK(1, boot_info.protocol == BootInfo::kMultiboot);
  Print("Multiboot, flags 0x%x\n", boot_info.multiboot_flags);
  CheckMemory();
  CHECK(4, boot_info.multiboot_flags & kHasCommandLine);
  Print("  command  \"%s\"\n", boot_info.command_line);
  CheckModules();
  Print("%u modules\n", boot_info.module_count);
}

}  // namespace guest
