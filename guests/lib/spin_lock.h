// A lock between CPUs. In ring 0 it keeps interrupts away too; in ring 3 they cannot be turned off.
// A CPU that holds it already passes: a trap may report itself while its CPU was printing.
#pragma once

#include "lib/cpu.h"
#include "lib/io.h"

namespace guest {

class SpinLock {
 public:
  class Guard {
   public:
    explicit Guard(SpinLock& lock) : lock_(lock), restore_(InRing0() && InterruptsOn()) {
      if (restore_) DisableInterrupts();
      const unsigned me = ThisCpu().index + 1;
      nested_ = __atomic_load_n(&lock_.owner_, __ATOMIC_RELAXED) == me;
      unsigned nobody = 0;
      while (!nested_ && !__atomic_compare_exchange_n(&lock_.owner_, &nobody, me, false,
                                                      __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        nobody = 0;
        Pause();
      }
    }
    ~Guard() {
      if (!nested_) __atomic_store_n(&lock_.owner_, 0u, __ATOMIC_RELEASE);
      if (restore_) EnableInterrupts();
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    static bool InterruptsOn() { return (ReadFlags() & kFlagsInterrupt) != 0; }

    SpinLock& lock_;
    const bool restore_;
    bool nested_;
  };

 private:
  unsigned owner_ = 0;  // CPU index + 1
};

}  // namespace guest
