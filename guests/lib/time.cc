#include "lib/time.h"

#include "lib/apic.h"
#include "lib/io.h"
#include "lib/trap.h"

namespace guest {

namespace {

uint64_t MeasureOnce() {
  constexpr uint32_t kStart = 0xffffffff;
  StartTimer(vector::kSpurious, kStart);
  const uint32_t first = TimerCount();
  const uint64_t tsc = ReadTsc();
  uint32_t last;
  do {
    last = TimerCount();
  } while (first - last < kTimerHz / 3000);
  const uint64_t ticks = ReadTsc() - tsc;
  StopTimer();
  return ticks * (kTimerHz / 1'000'000) / (first - last);
}

}  // namespace

uint64_t TscPerMicrosecond() {
  static constinit uint64_t known = 0;
  if (known == 0) {
    // The middle of three: the host may take the CPU away between two readings.
    uint64_t a = MeasureOnce(), b = MeasureOnce();
    const uint64_t c = MeasureOnce();
    if (a > b) {
      const uint64_t swap = a;
      a = b;
      b = swap;
    }
    known = c < a ? a : c > b ? b : c;
    if (known == 0) known = 1;
  }
  return known;
}

void Delay(uint64_t microseconds) {
  const Deadline deadline(microseconds);
  while (!deadline.Passed()) Pause();
}

Deadline::Deadline(uint64_t microseconds) : end_(ReadTsc() + microseconds * TscPerMicrosecond()) {}

bool Deadline::Passed() const {
  return static_cast<int64_t>(ReadTsc() - end_) >= 0;
}

}  // namespace guest
