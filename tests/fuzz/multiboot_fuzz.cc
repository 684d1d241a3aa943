// Multiboot kernels whose magic and checksum are right: input is the place of the header, 2 bytes,
// then the file.
#include <cstring>
#include <vector>

#include "tests/fuzz/load_oracle.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  std::vector<uint8_t> file(data + 2, data + size);
  const size_t offset = (data[0] + 256u * data[1]) % 0x2100 * 4 % (file.size() + 1);
  if (file.size() < offset + 12) file.resize(offset + 12);
  uint32_t flags = 0;
  std::memcpy(&flags, &file[offset + 4], sizeof flags);
  const uint32_t words[] = {0x1badb002, flags, 0u - 0x1badb002u - flags};
  std::memcpy(&file[offset], words, sizeof words);
  crossbar::fuzz::LoadAndCheck(std::as_bytes(std::span(file)));
  return 0;
}
