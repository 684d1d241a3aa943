#include "lib/paging.h"

#include "lib/check.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/layout.h"
#include "lib/platform.h"
#include "lib/ring3.h"

extern "C" uint64_t boot_pml4[512];

namespace guest {
namespace {

constexpr uint64_t k2MiB = uint64_t{1} << 21;
constexpr uint64_t k1GiB = uint64_t{1} << 30;
constexpr uint64_t kAddressMask = 0x000ffffffffff000;
constexpr uint64_t kPresent = 1;

constinit bool has_gigabyte_pages = false;

uint64_t* NextTable(uint64_t& entry) {
  if (!(entry & kPresent)) entry = reinterpret_cast<uint64_t>(AllocatePages(1)) | PAGE_BITS;
  return reinterpret_cast<uint64_t*>(entry & kAddressMask);
}

void MapHere(const Range& range, Caching caching) {
  const uint64_t bits =
      PAGE_BITS | PAGE_LARGE | (caching == Caching::kUncached ? PAGE_UNCACHED : 0);
  const uint64_t last = range.end() - 1;
  uint64_t at = range.start & ~(k2MiB - 1);
  while (at <= last) {
    uint64_t& pdpte = NextTable(boot_pml4[at >> 39])[at >> 30 & 511];
    const bool whole = at % k1GiB == 0 && last - at >= k1GiB - 1;
    if (!(pdpte & kPresent) && whole && has_gigabyte_pages) pdpte = at | bits;
    if (pdpte & PAGE_LARGE) {
      at = (at | (k1GiB - 1)) + 1;
      continue;
    }
    uint64_t& pde = NextTable(pdpte)[at >> 21 & 511];
    if (!(pde & kPresent)) pde = at | bits;
    at += k2MiB;
  }
}

struct MapJob {
  Range range;
  Caching caching;
};

uint64_t RunMap(void* argument) {
  const auto& job = *static_cast<const MapJob*>(argument);
  MapHere(job.range, job.caching);
  return 0;
}

}  // namespace

void Map(Range range, Caching caching) {
  if (range.size == 0) return;
  const uint64_t last = range.end() - 1;
  CHECK(kCheckLibrary, last >> 47 == 0, "0x%lx is beyond four-level paging", last);
  if (last < 4 * k1GiB) return;
  MapJob job{range, caching};
  RunInRing3IfFree(RunMap, &job);
}

void MapPlatform() {
  // Asked in ring 0: there CPUID is the VMM's answer for sure.
  has_gigabyte_pages =
      Cpuid(0x80000000).eax >= 0x80000001 && (Cpuid(0x80000001).edx >> 26 & 1) != 0;
  for (unsigned i = 0; i < platform.ram_count; ++i) Map(platform.ram[i], Caching::kWriteBack);
  Map(platform.ecam, Caching::kUncached);
}

}  // namespace guest
