// What the files behind base/sys*.h share: a failpoint, EINTR, and errors. For them alone.
#pragma once

#include <cerrno>
#include <string_view>

#include "base/failpoint.h"
#include "base/result.h"
#include "base/sys.h"

namespace crossbar::sys::internal {

// Runs `call` under failpoint `name`, again after EINTR. The result, or -errno.
template <typename Call>
auto RunThrough(std::string_view name, Call&& call) -> decltype(call()) {
  if (const int injected = failpoints::Hit(name); injected != 0) [[unlikely]]
    return static_cast<decltype(call())>(-injected);
  while (true) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return static_cast<decltype(call())>(-errno);
  }
}

inline std::unexpected<Error> CallFailed(long result, std::string_view name,
                                         std::string_view detail = {}) {
  return std::unexpected(ErrnoError(static_cast<int>(-result), name, detail));
}

}  // namespace crossbar::sys::internal
