#include "lib/heap.h"

#include "lib/check.h"
#include "lib/platform.h"
#include "lib/string.h"

extern "C" uint8_t image_start[], image_end[];

namespace guest {
namespace {

constexpr uint64_t kHeapSize = 8 << 20;

constinit uint64_t next = 0;

Range Image() {
  const auto start = reinterpret_cast<uint64_t>(image_start);
  return {start, reinterpret_cast<uint64_t>(image_end) + kHeapSize - start};
}

const BootModule* ModuleIn(const Range& range) {
  for (unsigned i = 0; i < boot_info.module_count; ++i) {
    if (boot_info.modules[i].range.Overlaps(range)) return &boot_info.modules[i];
  }
  return nullptr;
}

bool IsRam(const Range& range) {
  if (platform.ram_count == 0) return true;  // nobody said what is
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    const Range& bank = platform.ram[i];
    if (bank.Contains(range.start) && range.end() <= bank.end()) return true;
  }
  return false;
}

}  // namespace

void* AllocatePages(uint64_t pages, uint64_t alignment) {
  if (next == 0) next = reinterpret_cast<uint64_t>(image_end);
  Range range{0, pages * kPageSize};
  for (;;) {
    range.start = (next + alignment - 1) & ~(alignment - 1);
    const BootModule* module = ModuleIn(range);
    if (module == nullptr) break;
    next = module->range.end();
  }
  next = range.end();
  CHECK(kCheckLibrary, next <= Image().end() && IsRam(range), "out of memory");
  memset(reinterpret_cast<void*>(range.start), 0, range.size);
  return reinterpret_cast<void*>(range.start);
}

bool InUse(const Range& range) {
  return Image().Overlaps(range) || ModuleIn(range) != nullptr;
}

uint64_t FreeRamStart() {
  Range page{Image().end(), kPageSize};
  while (const BootModule* module = ModuleIn(page)) {
    page.start = (module->range.end() + kPageSize - 1) & ~(kPageSize - 1);
  }
  return page.start;
}

}  // namespace guest
