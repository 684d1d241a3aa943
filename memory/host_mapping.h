// HostMapping: one mmap of ours, unmapped when it goes. Move-only value.
//
// Placed at an address congruent to `alignment` where asked, so that the kernel can use huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "memory/address.h"

namespace crossbar {

class HostMapping {
 public:
  HostMapping() = default;
  HostMapping(HostMapping&& other) noexcept;
  HostMapping& operator=(HostMapping&& other) noexcept;
  ~HostMapping();

  // Maps `size` bytes of `fd` from `offset`, MAP_SHARED, with PROT_* `protection`. The address is a
  // multiple of `alignment` (a power of two, at least a page). Errors: mmap's.
  static Result<HostMapping> Map(int fd, uint64_t offset, uint64_t size, int protection,
                                 uint64_t alignment = kPageSize);

  Hva address() const { return address_; }
  uint64_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {address_.pointer(), size_}; }
  bool valid() const { return size_ != 0; }

 private:
  void Unmap();

  Hva address_;
  uint64_t size_ = 0;
};

}  // namespace crossbar
