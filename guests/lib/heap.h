// Pages that guests take and never give back: stacks, page tables, buffers. They lie right above
// the image, clear of the boot modules. Not zeroed by the VMM's loader: AllocatePages does that.
//
// Boot CPU only.
#pragma once

#include <stdint.h>

#include "lib/boot_info.h"

namespace guest {

inline constexpr uint64_t kPageSize = 4096;

// `pages` zeroed pages with the given alignment (a power of two, in bytes). Never fails: a guest
// that does not fit its RAM reports it and ends.
void* AllocatePages(uint64_t pages, uint64_t alignment = kPageSize);

// What this guest occupies: the image and all that AllocatePages may ever give out, and the
// modules.
bool InUse(const Range& range);

// The first address above all of that, the same in each boot of an image.
uint64_t FreeRamStart();

}  // namespace guest
