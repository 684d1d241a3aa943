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
#include <concepts>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
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

// What one call of a handler can move.
constexpr bool IsAccessSize(unsigned size) {
  return size == 1 || size == 2 || size == 4 || size == 8;
}

// The `size` bytes at `data`, an access size, as a number and back. By compares: memcpy of a
// variable size is an indirect call (docs/decisions/005).
inline uint64_t LoadValue(const uint8_t* data, unsigned size) {
  uint64_t value = 0;
  if (size == 1) {
    value = *data;
  } else if (size == 4) {
    std::memcpy(&value, data, 4);
  } else if (size == 2) {
    std::memcpy(&value, data, 2);
  } else {
    std::memcpy(&value, data, 8);
  }
  return value;
}
inline void StoreValue(uint8_t* data, unsigned size, uint64_t value) {
  if (size == 1) {
    *data = static_cast<uint8_t>(value);
  } else if (size == 4) {
    std::memcpy(data, &value, 4);
  } else if (size == 2) {
    std::memcpy(data, &value, 2);
  } else {
    std::memcpy(data, &value, 8);
  }
}

class TrapBus {
 public:
  struct Entry {
    uint64_t start = 0;
    uint64_t size = 0;
    std::shared_ptr<BusDevice> device;
    // Its handlers, called through Add's type: a virtual call would load twice more before the CPU
    // knows where to go on (docs/decisions/005).
    uint64_t (*read)(BusDevice* device, uint64_t offset, unsigned size) = nullptr;
    void (*write)(BusDevice* device, uint64_t offset, unsigned size, uint64_t value) = nullptr;

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
    void Read(uint64_t address, uint8_t* data, unsigned size) {
      if (Hits(address, size) || Find(address, size)) [[likely]] {
        StoreValue(data, size, entry_.read(entry_.device.get(), address - entry_.start, size));
      } else {
        ReadBytes(address, data, size);
      }
    }
    void Write(uint64_t address, const uint8_t* data, unsigned size) {
      if (Hits(address, size) || Find(address, size)) [[likely]] {
        entry_.write(entry_.device.get(), address - entry_.start, size, LoadValue(data, size));
      } else {
        WriteBytes(address, data, size);
      }
    }

   private:
    // Whether entry_ is up to date and its device takes the access in one call.
    bool Hits(uint64_t address, unsigned size) const {
      return bus_.generation_.load(std::memory_order_acquire) == generation_ &&
             entry_.Contains(address, size) && IsAccessSize(size);
    }
    // Looks entry_ up anew; whether its device takes the access in one call.
    bool Find(uint64_t address, unsigned size);
    // What no device takes whole.
    void ReadBytes(uint64_t address, uint8_t* data, unsigned size);
    void WriteBytes(uint64_t address, const uint8_t* data, unsigned size);

    TrapBus& bus_;
    uint64_t generation_ = 0;  // of the bus when entry_ was looked up
    Entry entry_;              // keeps the device alive through its own removal
  };

  // Error: [start, start + size) is empty, wraps, or overlaps a device that is already there.
  // An access costs least where Device is final: nothing virtual is then left in the call.
  template <std::derived_from<BusDevice> Device>
  Result<> Add(uint64_t start, uint64_t size, std::shared_ptr<Device> device) EXCLUDES(mutex_) {
    return Insert({start, size, std::move(device),
                   [](BusDevice* self, uint64_t offset, unsigned bytes) {
                     return static_cast<Device*>(self)->Read(offset, bytes);
                   },
                   [](BusDevice* self, uint64_t offset, unsigned bytes, uint64_t value) {
                     static_cast<Device*>(self)->Write(offset, bytes, value);
                   }});
  }
  // Takes away the device that starts at `start`; false where there is none.
  bool Remove(uint64_t start) EXCLUDES(mutex_);

 private:
  Result<> Insert(Entry entry) EXCLUDES(mutex_);
  std::optional<Entry> Lookup(uint64_t address) const EXCLUDES(mutex_);

  mutable Mutex mutex_;
  // Grows with each removal, under mutex_. Ranges never overlap, so adding makes no cursor wrong.
  std::atomic<uint64_t> generation_ = 1;
  std::vector<Entry> entries_ GUARDED_BY(mutex_);  // by start
};

}  // namespace crossbar
