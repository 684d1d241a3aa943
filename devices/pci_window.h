// PciWindow: one window of a host bridge, on a TrapBus: accesses in it go to the BAR that decodes there.
//
// Shared with the bus it is on. BARs come and go as the guest programs them and may overlap; the one
// that came first answers, and the next as soon as it has gone: the rule of AddressSpace::MapOrClaim, by
// whose order those of memory come. vCPU threads read and write; any thread adds and removes. No lock is held while a BAR's handler runs (G10). Who answers is settled once
// for a whole access, before the first handler runs: a BAR that comes meanwhile must not answer the rest of
// a read that began as all ones. An access that no BAR holds whole goes to each byte's own; where nobody
// decodes it reads all ones and writes nothing.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/locks.h"
#include "devices/bus.h"

namespace crossbar {

class PciWindow final : public BusDevice {
 public:
  // Of memory or of ports: [start, start + size), not empty.
  PciWindow(uint64_t start, uint64_t size) : start_(start), size_(size) {}

  uint64_t start() const { return start_; }
  uint64_t size() const { return size_; }
  // Whether all of [start, start + size) lies within.
  bool Contains(uint64_t start, uint64_t size) const {
    return start - start_ < size_ && size <= size_ - (start - start_);
  }

  // `device` answers in [start, start + size), which the window contains. It comes after those that have
  // its `order` or less.
  void Add(uint64_t start, uint64_t size, std::shared_ptr<BusDevice> device, uint64_t order = 0)
      EXCLUDES(mutex_);
  // Takes `device` away; an access to it that was under way may still be finishing.
  void Remove(const BusDevice* device) EXCLUDES(mutex_);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

 private:
  struct Entry {
    uint64_t start = 0;
    uint64_t size = 0;
    std::shared_ptr<BusDevice> device;
    uint64_t order = 0;
  };
  // Who answers an access: the oldest BAR that holds any of it, if it holds all of it, else the oldest
  // of each byte. No device where there is none.
  struct Answer {
    Entry whole;
    std::array<Entry, 8> bytes;
  };
  Answer Find(uint64_t address, unsigned size) const EXCLUDES(mutex_);
  // The oldest BAR that holds any of [address, address + size), or null.
  const Entry* Oldest(uint64_t address, unsigned size) const REQUIRES(mutex_);

  const uint64_t start_;
  const uint64_t size_;
  mutable Mutex mutex_;
  std::vector<Entry> entries_ GUARDED_BY(mutex_);  // by order, oldest first
};

}  // namespace crossbar
