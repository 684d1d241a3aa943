// The page tables: everything mapped onto itself, all of it writable and open to ring 3.
//
// boot.S maps the first 4 GiB, MapPlatform the RAM and the ECAM above. What else lies there a guest
// maps itself: Map(bar.range, ...). One set of tables for all CPUs. Boot CPU only, any ring.
#pragma once

#include <stdint.h>

#include "lib/boot_info.h"

namespace guest {

enum class Caching { kWriteBack, kUncached };

// Maps `range`, widened to 2 MiB (or 1 GiB, where the CPU has such pages and the range is long).
// What is mapped already stays as it is.
void Map(Range range, Caching caching);

void MapPlatform();

}  // namespace guest
