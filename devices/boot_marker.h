// BootMarker: the POST code port (0x80). Notes when the guest wrote which value.
//
// Owned by Vm and the port bus; vCPU threads write, any thread takes a snapshot. Linux also writes
// to this port for delays, so the list is bounded: the first kMarks writes, the last, and a count.
#pragma once

#include <cstdint>
#include <vector>

#include "base/locks.h"
#include "devices/bus.h"

namespace crossbar {

class BootMarker final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 1;
  static constexpr size_t kMarks = 64;

  struct Mark {
    uint8_t value = 0;
    uint64_t monotonic_ns = 0;  // CLOCK_MONOTONIC
    bool operator==(const Mark&) const = default;
  };
  struct Marks {
    std::vector<Mark> first;  // in the order of the writes
    Mark last;
    uint64_t count = 0;  // of all writes
  };

  uint64_t Read(uint64_t offset, unsigned size) override EXCLUDES(mutex_);
  void Write(uint64_t offset, unsigned size, uint64_t value) override EXCLUDES(mutex_);

  Marks Snapshot() const EXCLUDES(mutex_);

 private:
  mutable Mutex mutex_;
  Marks marks_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
