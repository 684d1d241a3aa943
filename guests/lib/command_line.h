// The command line: words separated by spaces, "key=value" or bare.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace guest {

// The value of the last "key=value"; `fallback` if there is none or it is no number.
uint64_t CommandLineNumber(const char* key, uint64_t fallback);

// Copies the value of the last "key=value", cut to `size` - 1 characters; false if there is none.
bool CommandLineText(const char* key, char* value, size_t size);

// Whether the bare word is there.
bool CommandLineHas(const char* word);

}  // namespace guest
