// Prefaulting guest RAM with a progress bar for the person who waits.
#pragma once

#include "base/result.h"
#include "memory/guest_ram.h"

namespace crossbar {

// Touches all of `ram` with as many threads as the host has CPUs. Where that takes longer than a
// second, progress shows on stderr: a bar on a terminal, else a line every few seconds.
Result<> PrefaultWithProgress(const GuestRam& ram);

}  // namespace crossbar
