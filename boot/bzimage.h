// Loads a Linux bzImage by the 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst): long
// mode, identity-mapped, RSI = boot_params, entry at load address + 0x200.
// One thread; writes the kernel, the initrd and boot/x86_layout.h's ranges.
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"
#include "boot/load_context.h"

namespace crossbar {

// `head` is the start of the file.
bool LooksLikeBzImage(std::span<const std::byte> head);

// What LoadBzImage would refuse whatever the RAM.
Result<> CheckBzImage(const LoadRequest& request, std::span<const std::byte> head);
Result<LoadedGuest> LoadBzImage(LoadContext& context, std::span<const std::byte> head);

}  // namespace crossbar
