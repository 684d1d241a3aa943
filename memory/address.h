// Addresses and ranges that cannot be mistaken for one another.
//
// Gpa is a guest-physical address (IOVA == GPA throughout Crossbar), Hva a host-virtual one. A
// range of guest-physical memory is always a GuestRange, never two integers. Sizes are in bytes.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace crossbar {

inline constexpr uint64_t kPageSize = 4096;
inline constexpr uint64_t kKiB = 1ull << 10;
inline constexpr uint64_t kMiB = 1ull << 20;
inline constexpr uint64_t kGiB = 1ull << 30;
inline constexpr uint64_t k4GiB = 4 * kGiB;

// `alignment` is a power of two.
constexpr bool IsAligned(uint64_t value, uint64_t alignment) {
  return (value & (alignment - 1)) == 0;
}
constexpr uint64_t AlignDown(uint64_t value, uint64_t alignment) {
  return value & ~(alignment - 1);
}
// Wraps to 0 where the next boundary is 2^64.
constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return AlignDown(value + alignment - 1, alignment);
}

class Gpa {
 public:
  constexpr Gpa() = default;
  constexpr explicit Gpa(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }
  constexpr Gpa operator+(uint64_t offset) const { return Gpa(value_ + offset); }
  constexpr uint64_t operator-(Gpa other) const { return value_ - other.value_; }
  constexpr auto operator<=>(const Gpa&) const = default;

 private:
  uint64_t value_ = 0;
};

class Hva {
 public:
  constexpr Hva() = default;
  constexpr explicit Hva(uintptr_t value) : value_(value) {}
  explicit Hva(const void* pointer) : value_(reinterpret_cast<uintptr_t>(pointer)) {}
  constexpr uintptr_t value() const { return value_; }
  std::byte* pointer() const { return reinterpret_cast<std::byte*>(value_); }
  constexpr Hva operator+(uint64_t offset) const { return Hva(value_ + offset); }
  constexpr uint64_t operator-(Hva other) const { return value_ - other.value_; }
  constexpr auto operator<=>(const Hva&) const = default;

 private:
  uintptr_t value_ = 0;
};

// [start, start + size). May end at 2^64 but not wrap: where the bounds come from a guest, build it
// with Checked. Contains and Overlaps are right up to and including the last byte of the space.
struct GuestRange {
  Gpa start;
  uint64_t size = 0;

  // Nothing where the range would wrap around 2^64.
  static constexpr std::optional<GuestRange> Checked(uint64_t start, uint64_t size) {
    if (size != 0 && start + (size - 1) < start) return std::nullopt;
    return GuestRange{Gpa(start), size};
  }

  constexpr bool empty() const { return size == 0; }
  // One past the end; 0 where the range ends at 2^64.
  constexpr Gpa end() const { return start + size; }
  constexpr Gpa last() const { return start + (size - 1); }
  constexpr bool Contains(Gpa address) const { return address >= start && address - start < size; }
  constexpr bool Contains(const GuestRange& other) const {
    return other.empty() ? false
                         : Contains(other.start) && other.size <= size - (other.start - start);
  }
  constexpr bool Overlaps(const GuestRange& other) const {
    if (empty() || other.empty()) return false;
    return start <= other.last() && other.start <= last();
  }
  constexpr auto operator<=>(const GuestRange&) const = default;
};

}  // namespace crossbar

template <>
struct fmt::formatter<crossbar::Gpa> : fmt::formatter<uint64_t> {
  template <typename Context>
  auto format(crossbar::Gpa address, Context& context) const {
    return fmt::format_to(context.out(), "{:#x}", address.value());
  }
};

// "0x100000-0x1fffff"
template <>
struct fmt::formatter<crossbar::GuestRange> : fmt::formatter<uint64_t> {
  template <typename Context>
  auto format(const crossbar::GuestRange& range, Context& context) const {
    if (range.empty()) return fmt::format_to(context.out(), "empty@{:#x}", range.start.value());
    return fmt::format_to(context.out(), "{:#x}-{:#x}", range.start.value(), range.last().value());
  }
};
