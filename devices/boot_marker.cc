#include "devices/boot_marker.h"

#include <chrono>

namespace crossbar {
namespace {

// The steady clock is CLOCK_MONOTONIC under Linux.
uint64_t MonotonicNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

}  // namespace

uint64_t BootMarker::Read(uint64_t, unsigned) {
  MutexLock lock(mutex_);
  return marks_.last.value;
}

void BootMarker::Write(uint64_t, unsigned, uint64_t value) {
  MutexLock lock(mutex_);
  marks_.last = {static_cast<uint8_t>(value), MonotonicNs()};
  if (marks_.first.size() < kMarks) marks_.first.push_back(marks_.last);
  ++marks_.count;
}

BootMarker::Marks BootMarker::Snapshot() const {
  MutexLock lock(mutex_);
  return marks_;
}

}  // namespace crossbar
