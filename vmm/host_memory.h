// What the host's memory allows: a guest that is too large would be killed later, at a worse time.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "vmm/options.h"

namespace crossbar {

// Whether all guest RAM is taken at the start: with --prefault, and where a device of the host's is passed through. The
// kernel's VFIO pins all of it then, on one thread, which takes far longer than to touch it first on all of them.
bool TakesAllAtStart(const RunOptions& options);
// More than the host has is refused; where all of it is taken at the start, also more than is free, or than a control
// group lets us use.
Result<> CheckHostHas(const RunOptions& options);

struct MemoryLimit {
  uint64_t bytes;
  const char* whose;  // "this host has available", for a message
};
// The least of MemAvailable and the limits of our control groups (version 1 or 2) and of all above them.
// `root` is in front of every path, for tests.
MemoryLimit LeastMemoryLimit(const std::string& root = "");

}  // namespace crossbar
