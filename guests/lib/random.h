// xorshift64*: the same numbers from the same seed on every machine.
#pragma once

#include <stdint.h>

namespace guest {

class Random {
 public:
  explicit constexpr Random(uint64_t seed) : state_(seed * 2 + 1) {}

  constexpr uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1d;
  }
  constexpr uint64_t Below(uint64_t bound) { return (Next() >> 16) % bound; }

 private:
  uint64_t state_;
};

}  // namespace guest
