// Time by the TSC, measured once against the LAPIC timer.
#pragma once

#include <stdint.h>

#include "lib/io.h"

namespace guest {

// Measures for a millisecond at the first call, and uses this CPU's LAPIC timer for that.
uint64_t TscPerMicrosecond();

void Delay(uint64_t microseconds);

// For bounded waits: Deadline d(1000); while (!done && !d.Passed()) ...
class Deadline {
 public:
  explicit Deadline(uint64_t microseconds);
  bool Passed() const;

 private:
  uint64_t end_;
};

// With interrupts on, until done() or the time has passed.
template <typename Done>
void AwaitInterrupts(uint64_t microseconds, Done done) {
  const Deadline deadline(microseconds);
  while (!done() && !deadline.Passed()) {
    EnableInterrupts();
    Pause();
    DisableInterrupts();
  }
}

}  // namespace guest
