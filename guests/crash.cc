// crash: ends in a triple fault, as a guest that lost its way does. The VMM must say so and stop;
// the guest never gets to any exit of its own. If it does: check number 1.
//
// The exception is #UD: PVM's emulator has no INT3 in ring 0 and would report an internal error.

#include <stdint.h>

#include "lib/check.h"
#include "lib/guest.h"
#include "lib/print.h"

namespace guest {

void GuestMain() {
  Print("Triple fault now: an exception without an IDT.\n");
  struct [[gnu::packed]] {
    uint16_t limit;
    uint64_t base;
  } const empty = {0, 0};
  asm volatile("lidt %0; ud2" ::"m"(empty) : "memory");
  CHECK(1, false, "still here after a triple fault");
}

}  // namespace guest
