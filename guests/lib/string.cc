#include "lib/string.h"

// String instructions, because one emulated instruction is cheaper than a loop (lib/ring3.h).
extern "C" {

void* memcpy(void* to, const void* from, size_t size) {
  void* result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
  return result;
}

void* memmove(void* to, const void* from, size_t size) {
  const uintptr_t distance = reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from);
  if (distance >= size) return memcpy(to, from, size);
  auto* t = static_cast<volatile uint8_t*>(to);
  auto* f = static_cast<const uint8_t*>(from);
  while (size-- > 0) t[size] = f[size];
  return to;
}

void* memset(void* to, int value, size_t size) {
  void* result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return result;
}

int memcmp(const void* a, const void* b, size_t size) {
  auto* x = static_cast<const uint8_t*>(a);
  auto* y = static_cast<const uint8_t*>(b);
  for (size_t i = 0; i < size; ++i) {
    if (x[i] != y[i]) return x[i] - y[i];
  }
  return 0;
}

size_t strlen(const char* text) {
  const volatile char* end = text;
  while (*end != 0) ++end;
  return static_cast<size_t>(end - text);
}

}  // extern "C"

namespace guest {

bool Equal(const char* a, const char* b) {
  while (*a != 0 && *a == *b) ++a, ++b;
  return *a == *b;
}

bool StartsWith(const char* text, const char* prefix) {
  while (*prefix != 0 && *text == *prefix) ++text, ++prefix;
  return *prefix == 0;
}

void CopyText(char* to, size_t size, const char* from) {
  if (size == 0) return;
  size_t i = 0;
  for (; i + 1 < size && from[i] != 0; ++i) to[i] = from[i];
  to[i] = 0;
}

bool ParseNumber(const char* text, uint64_t* value) {
  const unsigned base = StartsWith(text, "0x") ? 16 : 10;
  if (base == 16) text += 2;
  uint64_t result = 0;
  bool any = false;
  for (;; ++text) {
    const char c = *text;
    unsigned digit = 16;
    if (c >= '0' && c <= '9') digit = static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') digit = static_cast<unsigned>(c - 'a') + 10;
    if (c >= 'A' && c <= 'F') digit = static_cast<unsigned>(c - 'A') + 10;
    if (digit >= base) break;
    result = result * base + digit;
    any = true;
  }
  if (any) *value = result;
  return any;
}

}  // namespace guest
