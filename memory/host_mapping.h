// HostMapping: one mmap of ours, unmapped when it goes. Move-only value.
//
// Placed where asked for relative to huge pages, so that the kernel can use them.
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

  // Maps `size` bytes of `fd` from `offset`, MAP_SHARED, with PROT_* `protection`. The address is
  // `phase` beyond a multiple of `alignment` (a power of two, at least a page; `phase` is in pages
  // and below it): huge pages need an address that lies in one as the memory behind it does, and
  // what is left of a BAR behind a hole does not start with one. Errors: mmap's.
  static Result<HostMapping> Map(int fd, uint64_t offset, uint64_t size, int protection,
                                 uint64_t alignment = kPageSize, uint64_t phase = 0);

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
