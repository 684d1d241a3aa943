// What the peer-to-peer guests share: the target BAR, patterns, and the ways to end its decode.
//
// Boot CPU only.
#pragma once

#include <stdint.h>

#include "lib/pci.h"

namespace guest {

// A memory BAR of a device: that of the first ivshmem-plain-compatible one, or on the command line
// target=0xVVVVDDDD bar=N.
class Target {
 public:
  // Finds it and maps it here, and changes nothing of it. False where there is none.
  bool Find();
  // And lets the device decode.
  bool Start();

  const PciFunction& function() const { return function_; }
  unsigned bar() const { return index_; }
  uint64_t start() const { return range_.start; }
  uint64_t size() const { return range_.size; }
  uint64_t other() const { return other_; }  // where kMove puts it: no BAR is there at the start

  // What ends decode. kMove ends it at the old address only; kReset is the FLR the device has, PCIe or AF; kBus is the
  // Secondary Bus Reset of the root port above it.
  enum class Cause { kDecode, kPower, kReset, kMove, kBus };
  // By name: "decode", "power", "reset", "move", "bus". False for another name.
  static bool ParseCause(const char* name, Cause* cause);
  // False where the device has no such thing.
  bool End(Cause cause);
  // Decode as before, at the same address.
  void Restore(Cause cause);

 private:
  void WriteAddress(uint64_t address);
  bool ResetFunction();
  bool ResetBus();

  PciFunction function_{};
  unsigned index_ = 0;
  bool wide_ = false;
  Range range_{};
  uint64_t other_ = 0;
  uint32_t registers_[6] = {};
};

// `size` (a multiple of 8) pseudo-random bytes of `seed`.
void FillPattern(uint64_t address, uint64_t size, uint64_t seed);
// Whether they are there; else where the first is that is not, and what is there instead.
bool HoldsPattern(uint64_t address, uint64_t size, uint64_t seed, uint64_t* where, uint64_t* got);

}  // namespace guest
