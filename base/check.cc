#include "base/check.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace crossbar {

void CheckFailed(const char* file, int line, const char* expression, std::string_view facts) {
  std::string text = fmt::format("{}:{}: CHECK({}) failed", file, line, expression);
  if (!facts.empty()) text += fmt::format(": {}", facts);
  text += '\n';
  // Straight to the descriptor: the logger may be what is broken.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
  std::abort();
}

}  // namespace crossbar
