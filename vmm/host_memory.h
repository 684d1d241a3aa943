// What the host's memory allows: a guest that is too large would be killed later, at a worse time.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "vmm/options.h"

namespace crossbar {

// More than the host has is refused; with --prefault, which takes it all at once, also more than is
// free, or than a control group lets us use.
Result<> CheckHostHas(const RunOptions& options);

struct MemoryLimit {
  uint64_t bytes;
  const char* whose;  // "this host has available", for a message
};
// The least of MemAvailable and the limits of our control groups (version 1 or 2) and of all above them.
// `root` is in front of every path, for tests.
MemoryLimit LeastMemoryLimit(const std::string& root = "");

}  // namespace crossbar
