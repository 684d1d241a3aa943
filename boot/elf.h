// What the loaders need of an ELF file: its segments, its entry points and the notes that steer us.
//
// Pure decode, no guest memory is touched. A value, made once per LoadGuest; any thread. ELF32 and
// ELF64 (System V ABI, edition 4.1, chapter 5) for x86; every other machine is an error by name.
#pragma once

#include <optional>
#include <vector>

#include "base/result.h"
#include "boot/image_file.h"
#include "boot/load_context.h"
#include "memory/address.h"

namespace crossbar {

struct ElfImage {
  bool is_64 = false;
  std::vector<KernelSegment> segments;  // PT_LOAD at p_paddr, empty ones left out
  std::optional<Gpa> entry;             // e_entry as a physical address, if a segment holds it
  std::optional<Gpa> pvh_entry;         // XEN_ELFNOTE_PHYS32_ENTRY
  bool wants_device_tree = false;       // note "Crossbar", type 1

  // Whether a segment holds `address`.
  bool Contains(Gpa address) const;
};

bool LooksLikeElf(std::span<const std::byte> head);

Result<ElfImage> ParseElf(const ImageFile& file);

}  // namespace crossbar
