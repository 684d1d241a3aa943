// zap_dma: a peer's DMA at a BAR that does not decode any more reaches nobody (G7).
//
// Command line: cause=decode|power|reset|move ends the target's decode (lib/p2p.h has the rest), wait
// waits for a line on the serial port before "again" and before "restored", so that the host can
// meddle with the real device in between.
//
// Prints "before", "ended", "again" (another DMA, after the host has meddled), "restored".
//
// Check numbers:
//   1  there is an initiator, and it is alive
//   2  there is a target with a memory BAR, and it can do what cause= asks for
//   3  a transfer ends
//   4  before: what a peer writes arrives
//   5  ended: a CPU's read gives all ones, its write is dropped
//   6  restored: the BAR holds what it held before; no DMA that came meanwhile arrived
//   7  restored: what a peer writes arrives again
#include <stdint.h>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/edu.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/serial.h"

namespace guest {
namespace {

constexpr uint64_t kSize = 1024;
constinit Edu edu;
constinit Target target;

// A pattern of `seed` from RAM through the engine to the BAR.
void WriteByPeer(uint64_t ram, uint64_t seed) {
  FillPattern(ram, kSize, seed);
  CHECK(3, edu.Transfer(Edu::Direction::kToDevice, ram, kSize), "from RAM");
  CHECK(3, edu.Transfer(Edu::Direction::kFromDevice, target.start(), kSize), "to the BAR");
}

void CheckBar(unsigned check, uint64_t seed) {
  uint64_t where, got;
  CHECK(check, HoldsPattern(target.start(), kSize, seed, &where, &got), "0x%lx holds 0x%lx", where, got);
}

void WaitForHost() {
  if (!CommandLineHas("wait")) return;
  while (SerialRead() != '\n') Pause();
}

}  // namespace

void GuestMain() {
  CHECK(1, edu.Start() && edu.Alive(), "no edu-compatible device answers");
  CHECK(2, target.Start(), "no target");
  char name[16] = "decode";
  CommandLineText("cause", name, sizeof name);
  Target::Cause cause;
  CHECK(2, Target::ParseCause(name, &cause), "cause=%s", name);
  const uint64_t ram = reinterpret_cast<uint64_t>(AllocatePages(1));

  WriteByPeer(ram, 1);
  CheckBar(4, 1);
  Print("before: BAR at 0x%lx\n", target.start());

  CHECK(2, target.End(cause), "the target knows no %s", name);
  CHECK(5, Read<uint64_t>(target.start()) == ~0ull, "0x%lx", Read<uint64_t>(target.start()));
  Write<uint64_t>(target.start(), 0);
  WriteByPeer(ram, 2);
  Print("ended by %s\n", name);

  WaitForHost();
  WriteByPeer(ram, 3);
  Print("again\n");

  WaitForHost();
  target.Restore(cause);
  CheckBar(6, 1);
  WriteByPeer(ram, 4);
  CheckBar(7, 4);
  Print("restored\n");
}

}  // namespace guest
