#include "base/fd.h"

#include <unistd.h>

#include <cerrno>

#include "base/check.h"

namespace crossbar {

void Fd::Reset() {
  if (fd_ < 0) return;
  // Linux releases the descriptor even when close reports EINTR or EIO: never retry. EBADF means
  // that somebody else closed it, and that a third party may own the number by now.
  const int result = ::close(std::exchange(fd_, -1));
  CHECK(result == 0 || errno != EBADF, "a descriptor was closed twice");
}

}  // namespace crossbar
