// intx: the legacy interrupt of a device, level-triggered, many times in a row.
//
// The first edu-compatible device raises it raises=N times, and each time the handler ends the cause and
// then the interrupt. Then once more, and the handler ends the interrupt held=N times before the cause: as
// often the level brings it back. Then it waits for a line on the serial port, so that the host can
// look at the device before the end.
//
// Prints how many came.
//
// Check numbers:
//   1  there is such a device, and it has INTx
//   2  each raise is one interrupt, with the cause it was raised for
//   3  a cause that was not ended is one interrupt for each time it was not
//   4  nothing more comes
#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/edu.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/print.h"
#include "lib/serial.h"
#include "lib/time.h"
#include "lib/trap.h"

namespace guest {
namespace {

constexpr uint8_t kVector = 0x41;
constexpr uint64_t kPatience = 5'000'000;  // microseconds
constexpr uint64_t kQuiet = 20'000;        // how long nothing must come

constinit Edu edu;
constinit volatile uint64_t interrupts = 0;
constinit volatile uint64_t held = 0;  // how often the cause is still to be left
constinit volatile uint32_t causes = 0;

void OnInterrupt(TrapFrame&) {
  interrupts = interrupts + 1;
  if (held > 0) {
    held = held - 1;
  } else {
    causes = edu.TakeInterrupt();
  }
  LocalApicEnd();
}

// With interrupts on, until `count` have come or patience ends.
void WaitForCount(uint64_t count, uint64_t patience) {
  const Deadline deadline(patience);
  EnableInterrupts();
  while (interrupts < count && !deadline.Passed()) Pause();
  DisableInterrupts();
}

}  // namespace

void GuestMain() {
  CHECK(1, edu.Start() && edu.Alive(), "no edu-compatible device answers");
  SetTrapHandler(kVector, OnInterrupt);
  CHECK(1, edu.UseIntx(kVector), "no INTx");
  const uint64_t raises = CommandLineNumber("raises", 100);
  for (uint64_t i = 1; i <= raises; ++i) {
    const auto cause = static_cast<uint32_t>(i);
    edu.Raise(cause);
    WaitForCount(i, kPatience);
    CHECK(2, interrupts == i && causes == cause, "%lu of %lu, 0x%x", interrupts, i, causes);
  }
  const uint64_t left = CommandLineNumber("held", 10);
  held = left;
  edu.Raise(1);
  WaitForCount(raises + left + 1, kPatience);
  CHECK(3, interrupts == raises + left + 1 && held == 0, "%lu", interrupts);
  WaitForCount(~0ull, kQuiet);
  CHECK(4, interrupts == raises + left + 1, "%lu", interrupts);
  Print("%lu interrupts\n", interrupts);
  SerialSkipLine();
}

}  // namespace guest
