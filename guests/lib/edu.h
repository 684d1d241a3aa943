// The DMA engine `edu`: QEMU's teaching device and what is compatible with it (QEMU, docs/specs/edu.rst).
//
// One engine for each object; one CPU at a time.
#pragma once

#include <stdint.h>

#include "lib/pci.h"

namespace guest {

class Edu {
 public:
  static constexpr uint16_t kVendor = 0x1234, kDevice = 0x11e8;
  static constexpr uint32_t kIdentification = 0x010000ed;
  static constexpr uint64_t kBufferSize = 4096;  // what one transfer can carry, at least
  // In its registers, where it is our own `dma`: a write of four bytes starts what was prepared.
  static constexpr uint64_t kDoorbell = 0x1020;

  // Finds the first such device, maps its registers and lets it decode and master the bus. False where
  // there is none.
  bool Start(unsigned skip = 0);

  const PciFunction& function() const { return function_; }
  uint64_t registers() const { return registers_; }
  bool Alive() const;
  // What one transfer can carry: more than kBufferSize where the device is our own `dma` and says so.
  uint64_t buffer_size() const;

  // Uses MSI, MSI-X or INTx, and not the others, from now on: completion raises `vector` on the boot CPU.
  // False where it has no such thing. INTx is what there is before one of the others was used.
  bool UseMsi(uint8_t vector);
  bool UseMsix(uint8_t vector);
  bool UseIntx(uint8_t vector);

  enum class Direction : uint32_t { kToDevice = 0, kFromDevice = 2 };
  // A transfer between `address` on the bus and its buffer at `offset`, which Begin starts.
  void Prepare(Direction direction, uint64_t address, uint64_t size, uint64_t offset = 0);
  void Begin(Direction direction, uint64_t address, uint64_t size, uint64_t offset = 0);
  // Waits for its end; false after five seconds.
  bool Finish() const;
  // Both in one.
  bool Transfer(Direction direction, uint64_t address, uint64_t size, uint64_t offset = 0) {
    Begin(direction, address, size, offset);
    return Finish();
  }

  // Raises an interrupt for `causes`, and nothing else.
  void Raise(uint32_t causes) const;
  // What raised the interrupt, and its end.
  uint32_t TakeInterrupt() const;

 private:
  void Program(Direction direction, uint64_t address, uint64_t size, uint64_t offset, uint32_t command);

  PciFunction function_{};
  uint64_t registers_ = 0;
  bool interrupts_ = false;
};

}  // namespace guest
