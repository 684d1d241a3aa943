// bar_poke: does to a BAR what whoever types on the serial port says, one letter a step, and prints the
// letter when the step is done.
//
// Command line: which BAR (lib/p2p.h). Prints "ready" first, with decode off.
//   d  memory decode on        o  off
//   m  the BAR moves up by its size        b  back
//   r  a read of its first 8 bytes, printed
//   q  the end
//
// Check numbers:
//   1  there is a target with a memory BAR
//   2  the letter is one of these
#include <stdint.h>

#include "lib/check.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/serial.h"

namespace guest {
namespace {

constinit Target target;

void Step(char letter) {
  using Cause = Target::Cause;
  switch (letter) {
    case 'd': target.Restore(Cause::kDecode); break;
    case 'o': target.End(Cause::kDecode); break;
    case 'm': target.End(Cause::kMove); break;
    case 'b': target.Restore(Cause::kMove); break;
    case 'r': Print("0x%lx ", Read<uint64_t>(target.start())); break;
    default: CHECK(2, false, "'%c'", letter);
  }
}

}  // namespace

void GuestMain() {
  CHECK(1, target.Find(), "no target");
  Print("ready\n");
  for (;;) {
    const int typed = SerialRead();
    if (typed == 'q') return;
    if (typed < 0 || typed == '\n') {
      Pause();
      continue;
    }
    Step(static_cast<char>(typed));
    Print("%c\n", static_cast<char>(typed));
  }
}

}  // namespace guest
