// Loads a Multiboot 1 kernel (Multiboot Specification 0.6.96): 32-bit protected mode, paging off,
// EAX = 0x2BADB002, EBX = the information structure. The image is an ELF32 file, or any file whose
// header carries its addresses (flag bit 16).
// One thread; writes the kernel, its modules and boot/x86_layout.h's ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"
#include "boot/elf.h"
#include "boot/load_context.h"

namespace crossbar {

// The header lies whole within this many bytes from the start of the file (section 3.1).
inline constexpr size_t kMultibootSearch = 8192;

struct MultibootHeader {
  uint64_t offset = 0;  // in the file
  uint32_t flags = 0;
  // Section 3.1.3; all zero without flag bit 16.
  uint32_t header_address = 0;
  uint32_t load_address = 0;
  uint32_t load_end = 0;  // 0: to the end of the file
  uint32_t bss_end = 0;   // 0: no .bss
  uint32_t entry = 0;

  bool has_addresses() const { return (flags & (1u << 16)) != 0; }
};

// `head` is the start of the file, at most kMultibootSearch bytes.
std::optional<MultibootHeader> FindMultibootHeader(std::span<const std::byte> head);

// `elf` is null where the file is no ELF file.
Result<LoadedGuest> LoadMultiboot(LoadContext& context, const MultibootHeader& header,
                                  const ElfImage* elf);

}  // namespace crossbar
