// Guarded copies: touch memory that somebody else can take away at any moment (a BAR whose decode
// went off, a file that was truncated) and get an error for it, not a SIGBUS. Any thread.
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"
#include "memory/address.h"

namespace crossbar {

// Copies all of it through the kernel, or fails with EFAULT (process_vm_readv(2) on ourselves). Not
// for the mmap of a VFIO region: the kernel reads no VM_PFNMAP memory this way; those have pread.
Result<> GuardedRead(Hva from, std::span<std::byte> to);
Result<> GuardedWrite(Hva to, std::span<const std::byte> from);

}  // namespace crossbar
