// p2p_copy: one device DMAs straight into another device's BAR and out of it, byte for byte.
//
// The initiator is the first edu-compatible device, the target a BAR of memory (lib/p2p.h);
// at=OFFSET says where in it.
//
// For each size: a pattern of the CPU's in the BAR -> engine -> RAM, checked in RAM; then another one in RAM -> engine ->
// BAR, checked by the CPU. What lies around the copied range must not change. First by polling, then by interrupt: by MSI and
// by MSI-X, as the engine has them. Sizes go up to what its buffer holds. With the word wait, "stands" says
// where what the engine wrote last is, and the guest waits for a line on the serial port, so that the host can read it too.
//
// Check numbers:
//   1  there is an initiator, and it is alive
//   2  there is a target with a memory BAR
//   3  a transfer ends
//   4  the BAR holds what was in RAM
//   5  RAM holds what was in the BAR
//   6  bytes beside the range are what they were
//   7  completion raises one interrupt
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
#include "lib/serial.h"
#include "lib/time.h"
#include "lib/trap.h"

namespace guest {
namespace {

constexpr uint8_t kVector = 0x41;
constexpr uint64_t kMargin = 64;
constexpr uint64_t kLargest = 64 * 1024;
constexpr uint64_t kBeside = 0xa5a5a5a5a5a5a5a5;

constinit Edu edu;
constinit Target target;
constinit volatile uint64_t interrupts = 0;

void OnInterrupt(TrapFrame&) {
  edu.TakeInterrupt();
  interrupts = interrupts + 1;
  LocalApicEnd();
}

// Fills [address - kMargin, address + size + kMargin): a pattern from `seed`, kBeside around it.
void Fill(uint64_t address, uint64_t size, uint64_t seed) {
  for (uint64_t i = 0; i < kMargin; i += 8) {
    Write<uint64_t>(address - kMargin + i, kBeside);
    Write<uint64_t>(address + size + i, kBeside);
  }
  FillPattern(address, size, seed);
}

void Compare(unsigned check, uint64_t address, uint64_t size, uint64_t seed) {
  uint64_t where, got;
  CHECK(check, HoldsPattern(address, size, seed, &where, &got), "0x%lx holds 0x%lx", where, got);
  for (uint64_t i = 0; i < kMargin; i += 8) {
    CHECK(6, Read<uint64_t>(address - kMargin + i) == kBeside, "below 0x%lx", address);
    CHECK(6, Read<uint64_t>(address + size + i) == kBeside, "above 0x%lx", address + size);
  }
}

void Transfer(Edu::Direction direction, uint64_t address, uint64_t size, bool by_interrupt) {
  const uint64_t before = interrupts;
  edu.Begin(direction, address, size);
  if (!by_interrupt) {
    CHECK(3, edu.Finish(), "at 0x%lx", address);
    return;
  }
  AwaitInterrupts(5'000'000, [before] { return interrupts != before; });
  CHECK(7, interrupts == before + 1, "%lu", interrupts - before);
  CHECK(3, edu.Finish(), "at 0x%lx", address);
}

// `seed` from the BAR to `ram`, `seed` + 1 from `source` to the BAR.
void CopyBothWays(uint64_t bar, uint64_t ram, uint64_t source, uint64_t size, uint64_t seed,
                  bool by_interrupt) {
  using Direction = Edu::Direction;
  Fill(bar, size, seed);
  Fill(ram, size, ~seed);
  Transfer(Direction::kToDevice, bar, size, by_interrupt);
  Transfer(Direction::kFromDevice, ram, size, by_interrupt);
  Compare(5, ram, size, seed);
  Fill(source, size, seed + 1);
  Fill(bar, size, ~seed);
  Transfer(Direction::kToDevice, source, size, by_interrupt);
  Transfer(Direction::kFromDevice, bar, size, by_interrupt);
  Compare(4, bar, size, seed + 1);
}

// Zeroed, with room for Fill's margins.
uint64_t Buffer(uint64_t size) {
  return reinterpret_cast<uint64_t>(AllocatePages(3 + size / kPageSize)) + kPageSize;
}

}  // namespace

void GuestMain() {
  CHECK(1, edu.Start() && edu.Alive(), "no edu-compatible device answers");
  CHECK(2, target.Start(), "no target");
  Print("target %02x:%02x.%u BAR %u at 0x%lx, %lu KiB\n", target.function().bdf.bus,
        target.function().bdf.device, target.function().bdf.function, target.bar(), target.start(),
        target.size() / 1024);
  const uint64_t bar = target.start() + CommandLineNumber("at", kPageSize);
  constexpr uint64_t kSizes[] = {8, 256, Edu::kBufferSize, kLargest};
  const uint64_t most = edu.buffer_size() < kLargest ? edu.buffer_size() : kLargest;
  CHECK(2, bar + most + kMargin <= target.start() + target.size(), "it is small");
  const uint64_t ram = Buffer(most), source = Buffer(most);
  unsigned copies = 0;
  uint64_t last = 0;
  const auto run = [&](bool by_interrupt) {
    for (const uint64_t size : kSizes) {
      if (size > most) continue;
      CopyBothWays(bar, ram, source, size, 7 + copies, by_interrupt);
      copies += 2;
      last = size;
    }
  };
  run(false);
  SetTrapHandler(kVector, OnInterrupt);
  const bool msi = edu.UseMsi(kVector);
  if (msi) run(true);
  const bool msix = edu.UseMsix(kVector);
  if (msix) run(true);
  Print("%u copies between RAM and the BAR are right, %lu interrupts%s\n", copies, interrupts,
        msix ? " (MSI-X too)" : msi ? "" : " (no MSI)");
  if (!CommandLineHas("wait")) return;
  Print("stands: %lu bytes, seed %u at 0x%lx in RAM, seed %u at 0x%lx in the BAR\n", last, 5 + copies, ram,
        6 + copies, bar - target.start());
  SerialSkipLine();
}

}  // namespace guest
