// ELF files whose identification is right, so that mutations reach segments and notes.
#include <elf.h>

#include <cstring>
#include <vector>

#include "tests/fuzz/load_oracle.h"

namespace {

template <typename Header, typename Program>
void Repair(std::vector<uint8_t>* file) {
  Header header{};
  if (file->size() < sizeof header) file->resize(sizeof header);
  std::memcpy(&header, file->data(), sizeof header);
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = sizeof header == sizeof(Elf64_Ehdr) ? ELFCLASS64 : ELFCLASS32;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_phoff %= 0x80;
  header.e_phentsize = sizeof(Program);
  header.e_phnum %= 17;
  std::memcpy(file->data(), &header, sizeof header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> file(data, data + size);
  if (size > EI_CLASS && data[EI_CLASS] == ELFCLASS32) {
    Repair<Elf32_Ehdr, Elf32_Phdr>(&file);
  } else {
    Repair<Elf64_Ehdr, Elf64_Phdr>(&file);
  }
  crossbar::fuzz::LoadAndCheck(std::as_bytes(std::span(file)));
  return 0;
}
