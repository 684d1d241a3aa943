// PciWindow: one window of a host bridge, on a TrapBus: accesses in it go to the BAR that decodes there.
//
// Shared with the bus it is on. BARs come and go as the guest programs them and may overlap; the one
// that came first answers, and the next as soon as it has gone. vCPU threads read and write; any
// thread adds and removes. No lock is held while a BAR's handler runs (G10). An access that crosses
// the edge of a BAR goes on byte by byte; where nobody decodes it reads all ones and writes nothing.
#pragma once

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

  // `device` answers in [start, start + size), which the window contains.
  void Add(uint64_t start, uint64_t size, std::shared_ptr<BusDevice> device) EXCLUDES(mutex_);
  // Takes `device` away; an access to it that was under way may still be finishing.
  void Remove(const BusDevice* device) EXCLUDES(mutex_);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

 private:
  struct Entry {
    uint64_t start = 0;
    uint64_t size = 0;
    std::shared_ptr<BusDevice> device;
  };
  // The oldest BAR that holds `address`; no device where none does.
  Entry Find(uint64_t address) const EXCLUDES(mutex_);

  const uint64_t start_;
  const uint64_t size_;
  mutable Mutex mutex_;
  std::vector<Entry> entries_ GUARDED_BY(mutex_);  // oldest first
};

}  // namespace crossbar
