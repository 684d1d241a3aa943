// What one side asks of a file that the other sent before it maps it. The sender may be hostile, and the
// file of a file system that the sender is, which never answers.
//
// Pure questions; any thread. None of them waits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace crossbar::vfio_user {

// Whether it is memory: a memfd, shared memory or huge pages. No other file has seals, and seals are asked of
// the kernel alone; anything else that is asked of a file, or done to what is mapped of it, may never end.
bool IsMemoryFile(int file);

// Why memory that is mapped of `file`, up to `end`, may fault, if it may. A huge page that its owner punches
// out may not be had again, and whoever touches it faults: seals do not keep it from that.
std::optional<std::string> WhyItMayFault(int file, uint64_t end);

}  // namespace crossbar::vfio_user
