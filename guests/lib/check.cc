#include "lib/check.h"

#include <stdarg.h>

#include "lib/power.h"

namespace guest {

void CheckFailed(unsigned number, const char* file, int line, const char* condition) {
  CheckFailed(number, file, line, condition, "%s", "");
}

void CheckFailed(unsigned number, const char* file, int line, const char* condition,
                 const char* format, ...) {
  Print("\n%s:%d: check %u failed: %s ", file, line, number, condition);
  va_list arguments;
  va_start(arguments, format);
  PrintV(format, arguments);
  va_end(arguments);
  Print("\n");
  DebugExit(number);
}

}  // namespace guest
