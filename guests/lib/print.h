// Print: formatted text on the serial port. %s %c %d %i %u %x %p %%, the modifiers l, ll, z, a
// width and the flags 0 and -. Any CPU; lines of several CPUs do not mix.
#pragma once

#include <stdarg.h>
#include <stddef.h>

namespace guest {

[[gnu::format(printf, 1, 2)]] void Print(const char* format, ...);
void PrintV(const char* format, va_list arguments);

// Like vsnprintf: the length without the cut; `to` always ends if size is not 0.
size_t FormatV(char* to, size_t size, const char* format, va_list arguments);
[[gnu::format(printf, 3, 4)]] size_t Format(char* to, size_t size, const char* format, ...);

}  // namespace guest
