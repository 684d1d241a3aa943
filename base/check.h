// CHECK: a broken invariant of ours. Prints the facts and aborts; on in every build.
//
// Never for what a guest, a device server or an operator can cause (base/result.h).
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace crossbar {

// Prints "file:line: CHECK(expression) failed: facts" on stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              std::string_view facts);

}  // namespace crossbar

// CHECK(condition) or CHECK(condition, "slot {} still live", slot).
#define CHECK(condition, ...)                                                     \
  do {                                                                            \
    if (!(condition)) [[unlikely]]                                                \
      ::crossbar::CheckFailed(__FILE__, __LINE__, #condition,                     \
                              ::fmt::format("" __VA_ARGS__));                     \
  } while (false)
