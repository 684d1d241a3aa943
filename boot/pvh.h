// Loads an ELF kernel by the PVH boot ABI (Xen docs/misc/pvh.pandoc): 32-bit protected mode, paging
// off, EBX = hvm_start_info version 1 (xen/include/public/arch-x86/hvm/start_info.h).
// One thread; writes the kernel, its modules and boot/x86_layout.h's ranges.
#pragma once

#include "base/result.h"
#include "boot/elf.h"
#include "boot/load_context.h"

namespace crossbar {

// `image` has a pvh_entry.
Result<LoadedGuest> LoadPvh(LoadContext& context, const ElfImage& image);

}  // namespace crossbar
