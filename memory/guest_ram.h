// GuestRam: the guest's memory, one sealed memfd per bank, mapped once into our address space.
//
// Owned by Vm, made before anything maps it and alive until after the last memslot and DMA mapping
// of it are gone. Immutable after Create: any thread may read and write its bytes, with the races
// that hardware has. Loaders use Write, Read and At; a range outside RAM is an error there, for a
// guest-given address the caller's job is to turn it into hardware semantics.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "memory/address.h"
#include "memory/host_mapping.h"

namespace crossbar {

enum class PageSize : uint64_t { k4K = 4 * kKiB, k2M = 2 * kMiB, k1G = kGiB };

class GuestRam {
 public:
  struct Bank {
    GuestRange range;
    Fd memfd;             // the bank is the whole file
    HostMapping mapping;  // MAP_SHARED, read-write, DONTFORK
  };

  // `banks` are disjoint, in ascending order and multiples of the page size. With k2M or k1G the
  // memory is hugetlbfs and reserved at once: too few free huge pages is an error that says how
  // many are free and how to get more.
  static Result<GuestRam> Create(std::span<const GuestRange> banks, PageSize pages = PageSize::k4K);

  // Touches every page with `threads` threads. `progress` is called on the calling thread several
  // times a second with bytes done; it may be empty.
  Result<> Prefault(unsigned threads, const std::function<void(uint64_t done)>& progress) const;

  std::span<const Bank> banks() const { return banks_; }
  uint64_t size() const;
  PageSize page_size() const { return page_size_; }

  // The bytes of a range that lies whole within one bank.
  Result<std::span<std::byte>> At(GuestRange range) const;
  Result<> Write(Gpa address, std::span<const std::byte> data) const;
  Result<> Read(Gpa address, std::span<std::byte> data) const;
  // One trivially copyable object.
  template <typename T>
  Result<> WriteObject(Gpa address, const T& object) const {
    return Write(address, std::as_bytes(std::span(&object, 1)));
  }

 private:
  std::vector<Bank> banks_;
  PageSize page_size_ = PageSize::k4K;
};

}  // namespace crossbar
