#include "lib/command_line.h"

#include "lib/platform.h"
#include "lib/string.h"

namespace guest {
namespace {

// What follows `prefix` in the last word that starts with it; null if none does.
const char* FindWord(const char* prefix) {
  const char* found = nullptr;
  const char* p = platform.command_line;
  while (*p != 0) {
    while (*p == ' ') ++p;
    if (StartsWith(p, prefix)) found = p + strlen(prefix);
    while (*p != 0 && *p != ' ') ++p;
  }
  return found;
}

const char* FindValue(const char* key) {
  char prefix[40];
  CopyText(prefix, sizeof(prefix) - 1, key);
  const size_t length = strlen(prefix);
  prefix[length] = '=';
  prefix[length + 1] = 0;
  return FindWord(prefix);
}

}  // namespace

uint64_t CommandLineNumber(const char* key, uint64_t fallback) {
  uint64_t value = fallback;
  if (const char* text = FindValue(key)) ParseNumber(text, &value);
  return value;
}

bool CommandLineText(const char* key, char* value, size_t size) {
  const char* text = FindValue(key);
  if (text == nullptr || size == 0) return false;
  size_t i = 0;
  for (; i + 1 < size && text[i] != 0 && text[i] != ' '; ++i) value[i] = text[i];
  value[i] = 0;
  return true;
}

bool CommandLineHas(const char* word) {
  const char* rest = FindWord(word);
  return rest != nullptr && (*rest == 0 || *rest == ' ');
}

}  // namespace guest
