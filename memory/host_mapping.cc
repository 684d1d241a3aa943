#include "memory/host_mapping.h"

#include <sys/mman.h>

#include <utility>

#include "base/check.h"
#include "base/sys.h"

namespace crossbar {

HostMapping::HostMapping(HostMapping&& other) noexcept
    : address_(std::exchange(other.address_, Hva())), size_(std::exchange(other.size_, 0)) {}

HostMapping& HostMapping::operator=(HostMapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    address_ = std::exchange(other.address_, Hva());
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

HostMapping::~HostMapping() { Unmap(); }

void HostMapping::Unmap() {
  if (size_ == 0) return;
  // Past the door for system calls: it cannot fail for what was mapped.
  CHECK(::munmap(address_.pointer(), size_) == 0, "{:#x} bytes", size_);
  size_ = 0;
}

Result<HostMapping> HostMapping::Map(int fd, uint64_t offset, uint64_t size, int protection,
                                     uint64_t alignment, uint64_t phase) {
  CHECK(size != 0 && IsAligned(size, kPageSize) && IsAligned(alignment, kPageSize));
  CHECK(IsAligned(phase, kPageSize) && phase < alignment, "{:#x} of {:#x}", phase, alignment);
  HostMapping mapping;
  if (alignment == kPageSize) {
    void* address = TRY(sys::Mmap(nullptr, size, protection, MAP_SHARED, fd, offset));
    mapping.address_ = Hva(address);
    mapping.size_ = size;
    return mapping;
  }
  // Reserve enough that a fitting address lies inside, put the mapping there, give the rest back.
  const uint64_t reserved = size + alignment;
  void* reservation = TRY(sys::Mmap(nullptr, reserved, PROT_NONE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mapping.address_ = Hva(reservation);
  mapping.size_ = reserved;
  const Hva aligned(AlignUp(mapping.address_.value() - phase, alignment) + phase);
  TRY(sys::Mmap(aligned.pointer(), size, protection, MAP_SHARED | MAP_FIXED, fd, offset));
  const uint64_t before = aligned - mapping.address_;
  const uint64_t after = reserved - before - size;
  if (before != 0) TRY(sys::Munmap(mapping.address_.pointer(), before));
  mapping.address_ = aligned;
  mapping.size_ = size + after;
  if (after != 0) TRY(sys::Munmap((aligned + size).pointer(), after));
  mapping.size_ = size;
  return mapping;
}

}  // namespace crossbar
