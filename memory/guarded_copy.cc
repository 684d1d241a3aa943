#include "memory/guarded_copy.h"

#include <cerrno>

#include "base/sys.h"

namespace crossbar {
namespace {

// A copy that stops half-way stopped at a page that is not there.
Result<> Whole(Result<size_t> copied, size_t wanted, const char* name) {
  if (!copied) return std::unexpected(std::move(copied).error());
  if (*copied == wanted) return {};
  return std::unexpected(sys::ErrnoError(EFAULT, name));
}

}  // namespace

Result<> GuardedRead(Hva from, std::span<std::byte> to) {
  return Whole(sys::ReadOwnMemory(to, from.pointer()), to.size(), "process_vm_readv");
}

Result<> GuardedWrite(Hva to, std::span<const std::byte> from) {
  return Whole(sys::WriteOwnMemory(to.pointer(), from), from.size(), "process_vm_writev");
}

}  // namespace crossbar
