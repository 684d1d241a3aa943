// FuzzInput: turns a fuzzer's bytes into a sequence of choices, front to back, so that seeds can be
// joined. After its end everything is 0. Header only; works with any compiler
// (tests/fuzz/replay.cc).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace crossbar::fuzz {

class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : left_(data, size) {}

  bool empty() const { return left_.empty(); }

  template <typename T = uint64_t>
  T Number() {
    T value = 0;
    const std::span<const uint8_t> bytes = Bytes(sizeof(T));
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }

  // From `low` to `high`, both included. Takes one byte where that is enough.
  uint32_t InRange(uint32_t low, uint32_t high) {
    const uint32_t choices = high - low + 1;
    const uint32_t raw = choices <= 256 ? Number<uint8_t>() : Number<uint32_t>();
    return choices == 0 ? raw : low + raw % choices;
  }

  // `count` bytes, or as many as are left.
  std::span<const uint8_t> Bytes(size_t count) {
    const std::span<const uint8_t> bytes = left_.first(std::min(count, left_.size()));
    left_ = left_.subspan(bytes.size());
    return bytes;
  }

 private:
  std::span<const uint8_t> left_;
};

}  // namespace crossbar::fuzz
