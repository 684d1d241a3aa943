// Any bytes as a kernel, through the detection of formats.
#include "tests/fuzz/load_oracle.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  crossbar::fuzz::LoadAndCheck(std::as_bytes(std::span(data, size)));
  return 0;
}
