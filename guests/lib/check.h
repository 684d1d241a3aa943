// CHECK(number, condition[, format, ...]): what a test guest proves, step by step.
//
// A check that fails prints itself and ends the VM through the debug-exit port with its number, so
// that the VMM's exit status is number << 1 | 1. Numbers are unique in a guest and listed at its
// top. Any CPU, any ring that may use ports (lib/ring3.h).
#pragma once

#include "lib/print.h"

namespace guest {

inline constexpr unsigned kCheckLibrary = 0x7e;    // the library itself: status 253
inline constexpr unsigned kCheckException = 0x7f;  // an unexpected exception: status 255

[[noreturn, gnu::cold]] void CheckFailed(unsigned number, const char* file, int line,
                                         const char* condition);
[[noreturn, gnu::cold, gnu::format(printf, 5, 6)]] void CheckFailed(unsigned number,
                                                                    const char* file, int line,
                                                                    const char* condition,
                                                                    const char* format, ...);

}  // namespace guest

#define CHECK(number, condition, ...)                                                          \
  do {                                                                                         \
    if (!(condition)) [[unlikely]]                                                             \
      ::guest::CheckFailed(number, __FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
