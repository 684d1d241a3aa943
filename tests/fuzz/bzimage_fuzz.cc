// bzImages whose magic numbers are right, so that mutations reach sizes and addresses.
#include <cstring>
#include <vector>

#include "tests/fuzz/load_oracle.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> file(data, data + size);
  constexpr size_t kHeaderEnd = 0x26c;
  if (file.size() < kHeaderEnd) file.resize(kHeaderEnd);
  // Offsets of Linux Documentation/arch/x86/boot.rst.
  file[0x1fe] = 0x55;
  file[0x1ff] = 0xaa;
  std::memcpy(&file[0x202], "HdrS", 4);
  file[0x207] = 0x02;   // protocol 2.xx
  file[0x206] |= 0x0c;  // from 2.12 on
  file[0x211] |= 0x01;  // LOADED_HIGH
  file[0x236] |= 0x01;  // XLF_KERNEL_64
  crossbar::fuzz::LoadAndCheck(std::as_bytes(std::span(file)));
  return 0;
}
