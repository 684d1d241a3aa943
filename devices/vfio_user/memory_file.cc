#include "devices/vfio_user/memory_file.h"

#include <fcntl.h>

#include "base/sys.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user {

bool IsMemoryFile(int file) { return sys::GetSeals(file).has_value(); }

std::optional<std::string> WhyItMayFault(int file, uint64_t end) {
  const Result<int> seals = sys::GetSeals(file);
  if (!seals || (*seals & F_SEAL_SHRINK) == 0) return "is not sealed against shrinking";
  if (!sys::IsShmem(file)) return "is of huge pages";
  const Result<uint64_t> size = sys::FileSize(file);
  if (!size || *size < end) return "is shorter than what it is to hold";
  return std::nullopt;
}

}  // namespace crossbar::vfio_user
