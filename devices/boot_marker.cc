#include "devices/boot_marker.h"

#include <chrono>
#include <utility>

namespace crossbar {
namespace {

// The steady clock is CLOCK_MONOTONIC under Linux.
uint64_t MonotonicNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

}  // namespace

BootMarker::BootMarker(std::function<void(const Mark&)> on_mark) : on_mark_(std::move(on_mark)) {}

uint64_t BootMarker::Read(uint64_t, unsigned) {
  MutexLock lock(mutex_);
  return marks_.last.value;
}

void BootMarker::Write(uint64_t, unsigned, uint64_t value) {
  Mark mark;
  {
    MutexLock lock(mutex_);
    mark = {static_cast<uint8_t>(value), MonotonicNs()};
    if (marks_.first.size() < kMarks) marks_.first.push_back(mark);
    marks_.last = mark;
    ++marks_.count;
  }
  if (on_mark_) on_mark_(mark);
}

BootMarker::Marks BootMarker::Snapshot() const {
  MutexLock lock(mutex_);
  return marks_;
}

}  // namespace crossbar
