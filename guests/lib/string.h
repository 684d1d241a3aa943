// The memory functions that compilers call, and the few string helpers guests need.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {
void* memcpy(void* to, const void* from, size_t size);
void* memmove(void* to, const void* from, size_t size);
void* memset(void* to, int value, size_t size);
int memcmp(const void* a, const void* b, size_t size);
size_t strlen(const char* text);
}

namespace guest {

bool Equal(const char* a, const char* b);
bool StartsWith(const char* text, const char* prefix);

// Copies at most size - 1 characters and always ends `to`; for size 0, nothing.
void CopyText(char* to, size_t size, const char* from);

// Decimal, or hexadecimal after 0x, up to the first other character; false if there is no digit.
bool ParseNumber(const char* text, uint64_t* value);

}  // namespace guest
