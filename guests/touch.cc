// touch: reads the target BAR (lib/p2p.h) once in every 2 MiB, so that KVM maps all of it.
//
// Waits for a line on the serial port before and after, so that the host can see what that took.
// Prints "ready", "touched".
//
// Check numbers:
//   1  there is a target with a memory BAR
//   2  it answers
#include <stdint.h>

#include "lib/check.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/serial.h"

namespace guest {
namespace {

constexpr uint64_t kStep = 2 << 20;

void WaitForHost() {
  while (SerialRead() != '\n') Pause();
}

}  // namespace

void GuestMain() {
  Target target;
  CHECK(1, target.Start(), "no target");
  Print("ready: BAR at 0x%lx\n", target.start());
  WaitForHost();
  for (uint64_t at = 0; at < target.size(); at += kStep)
    CHECK(2, Read<uint32_t>(target.start() + at) != ~0u, "at 0x%lx", at);
  Print("touched\n");
  WaitForHost();
}

}  // namespace guest
