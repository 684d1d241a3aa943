// doorbell: rings a device's doorbell where the device is, and where it was.
//
// The device is our own `dma`, which takes target=0x123411e8 bar=0 on the command line (lib/p2p.h).
// rings=N: how often in each place. Nothing else that is done here and leaves the VM depends on N, so
// that the host can count the exits of a ring. Each ring is to make the device write a word into RAM and
// raise one interrupt, which is what is waited for.
//
// Prints "here", "moved" (rung at the new address, and to nobody at the old one), "off" (to nobody),
// "again", and how many came.
//
// Check numbers:
//   1  there is such a device, and it has MSI
//   2  a ring raises one interrupt
//   3  and has the device write
//   4  where the device is not, a read gives all ones
//   5  a ring where the device is not raises nothing
#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/edu.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/time.h"
#include "lib/trap.h"

namespace guest {
namespace {

constexpr uint8_t kVector = 0x41;
constexpr uint64_t kWord = 0x6c6c65622d726f6f;
constexpr uint64_t kPatience = 5'000'000;  // microseconds

constinit Edu edu;
constinit Target target;
constinit volatile uint64_t* word = nullptr;
constinit volatile uint64_t interrupts = 0;
constinit uint64_t wanted = 0;
constinit uint64_t rings = 0;

// Asks the device nothing, which would leave the VM.
void OnInterrupt(TrapFrame&) {
  interrupts = interrupts + 1;
  LocalApicEnd();
}

void AwaitInterrupt() {
  ++wanted;
  AwaitInterrupts(kPatience, [] { return interrupts >= wanted; });
  CHECK(2, interrupts == wanted, "%lu, not %lu", interrupts, wanted);
}

// The word goes from RAM into the device; what is prepared then is the way back.
void Arm() {
  CHECK(1, edu.UseMsi(kVector), "no MSI");
  *word = kWord;
  const auto address = reinterpret_cast<uint64_t>(word);
  edu.Begin(Edu::Direction::kToDevice, address, sizeof kWord);
  AwaitInterrupt();
  edu.Prepare(Edu::Direction::kFromDevice, address, sizeof kWord);
}

void RingAt(uint64_t registers) {
  for (uint64_t i = 0; i < rings; ++i) {
    *word = 0;
    Write<uint32_t>(registers + Edu::kDoorbell, 1);
    AwaitInterrupt();
    CHECK(3, *word == kWord, "0x%lx", *word);
  }
}

void RingNobodyAt(uint64_t registers) {
  for (uint64_t i = 0; i < rings; ++i) Write<uint32_t>(registers + Edu::kDoorbell, 1);
  const uint32_t got = Read<uint32_t>(registers + Edu::kDoorbell);
  CHECK(4, got == ~0u, "0x%x", got);
}

}  // namespace

void GuestMain() {
  using Cause = Target::Cause;
  CHECK(1, edu.Start() && edu.Alive(), "no edu-compatible device answers");
  CHECK(1, target.Find() && target.start() == edu.registers(), "target= and bar= name another BAR");
  rings = CommandLineNumber("rings", 100);
  word = reinterpret_cast<volatile uint64_t*>(AllocatePages(1));
  SetTrapHandler(kVector, OnInterrupt);
  Arm();

  RingAt(target.start());
  Print("here\n");
  target.End(Cause::kMove);
  RingNobodyAt(target.start());
  RingAt(target.other());
  Print("moved\n");
  target.Restore(Cause::kMove);
  target.End(Cause::kDecode);
  RingNobodyAt(target.start());
  Print("off\n");
  target.Restore(Cause::kDecode);
  RingAt(target.start());
  Print("again\n");
  const uint64_t rung = interrupts - 1;  // the first was Arm's
  CHECK(5, rung == 3 * rings, "%lu", rung);
  Print("%lu rings, %lu interrupts\n", 5 * rings, rung);
}

}  // namespace guest
