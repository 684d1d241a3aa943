// TrapBus: dispatch of trapped guest accesses (one for port I/O, one for MMIO).
//
// Owned by Vm. vCPU threads read and write through a Cursor of their own, which remembers the last
// device hit, so that the usual access takes no lock; any thread may Add and Remove. No handler
// runs with the bus lock held (G10), so a handler may change the very map that dispatched it.
// Accesses that no device claims read as all ones and drop writes, as on hardware.
//
// Once Remove has returned, no cursor starts another access to that device. One that was under way
// may still be finishing: who needs it finished takes the device's own lock, which its handlers
// hold. The object lives until each cursor that met it has made its next access, which an idle vCPU
// may never do: what must not linger (descriptors, mappings) is not for a destructor to release.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/locks.h"
#include "base/result.h"

namespace crossbar {

// A device that answers trapped accesses. `offset` counts from the start of its range on the bus;
// `size` is 1, 2, 4 or 8 and the access lies within the range, though at any alignment. Values
// are little-endian numbers of `size` bytes. Called by several vCPU threads at once.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  virtual uint64_t Read(uint64_t offset, unsigned size) = 0;
  virtual void Write(uint64_t offset, unsigned size, uint64_t value) = 0;
};

// All ones in the low `size` bytes: what an access that nobody answers reads.
constexpr uint64_t AllOnes(unsigned size) {
  return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

class TrapBus {
 public:
  struct Entry {
    uint64_t start = 0;
    uint64_t size = 0;
    std::shared_ptr<BusDevice> device;

    // Subtractions only: right up to the last byte of the address space.
    bool Contains(uint64_t address, unsigned bytes) const {
      return address - start < size && bytes <= size - (address - start);
    }
  };

  // One per vCPU thread and bus.
  class Cursor {
   public:
    explicit Cursor(TrapBus& bus) : bus_(bus) {}
    // `data` holds `size` bytes, 1 to 8. An access that crosses a device's edge, or whose size is
    // no power of two, is split into bytes, each dispatched by itself.
    void Read(uint64_t address, uint8_t* data, unsigned size);
    void Write(uint64_t address, const uint8_t* data, unsigned size);

   private:
    // The device that holds all of [address, address + size), or null.
    BusDevice* Find(uint64_t address, unsigned size);

    TrapBus& bus_;
    uint64_t generation_ = 0;  // of the bus when entry_ was looked up
    Entry entry_;              // keeps the device alive through its own removal
  };

  // Error: [start, start + size) is empty, wraps, or overlaps a device that is already there.
  Result<> Add(uint64_t start, uint64_t size, std::shared_ptr<BusDevice> device) EXCLUDES(mutex_);
  // Takes away the device that starts at `start`; false where there is none.
  bool Remove(uint64_t start) EXCLUDES(mutex_);

 private:
  std::optional<Entry> Lookup(uint64_t address) const EXCLUDES(mutex_);

  mutable Mutex mutex_;
  // Grows with each removal, under mutex_. Ranges never overlap, so adding makes no cursor wrong.
  std::atomic<uint64_t> generation_ = 1;
  std::vector<Entry> entries_ GUARDED_BY(mutex_);  // by start
};

}  // namespace crossbar
