// intx: the legacy interrupts of PCI devices, also on a line that they share.
//
// One edu-compatible device, or two that share a line: INTA of slots four apart. Each holds its line from
// Raise until the cause is taken. count=N says how often each stage does what it does; wait waits at the end
// for a line on the serial port, so that the host can look at the devices.
//
// KVM on PVM ends an interrupt when it delivers it, not when the handler does. A line that is still up then comes once more,
// after its cause was taken; where that is so, the last line says it, and as much more is granted as there were causes.
//
// Check numbers:
//   1  there is a device with an interrupt pin, and it is alive
//   2  the second device, if there is one, shares the line
//   3  what a device raises comes as one interrupt, each time
//   4  what is not taken comes again after each end of interrupt
//   5  both devices at once: whoever is not served by the first interrupt gets another
//   6  nothing comes that nobody raised
//   7  COMMAND's Interrupt Disable holds an interrupt back, and no longer than it is set
#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/cpu.h"
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
constexpr unsigned kLeftAlone = 3;         // interrupts of one cause before it is taken

struct Source {
  Edu edu;
  uint64_t taken = 0;
  uint32_t cause = 0;  // the last
};
constinit Source sources[2] = {};
constinit unsigned devices = 0;
constinit uint64_t interrupts = 0;
constinit unsigned leave_alone = 0;
constinit bool one_each = false;  // an interrupt serves one device only
constinit uint64_t times = 0;
constinit bool ends_early = false;
constinit bool was_late = false;  // into the time in which the device was held back

uint64_t Count(const uint64_t& counter) { return __atomic_load_n(&counter, __ATOMIC_ACQUIRE); }

void OnInterrupt(TrapFrame&) {
  __atomic_fetch_add(&interrupts, 1, __ATOMIC_ACQ_REL);
  ends_early |= !LocalApicServes(kVector);
  if (leave_alone != 0) {
    --leave_alone;
    return LocalApicEnd();
  }
  for (Source& source : sources) {
    if (&source == sources + devices) break;
    const uint32_t cause = source.edu.TakeInterrupt();
    if (cause == 0) continue;
    source.cause = cause;
    __atomic_fetch_add(&source.taken, 1, __ATOMIC_ACQ_REL);
    if (one_each) break;
  }
  LocalApicEnd();
}

// Until the counter is there or patience ends.
bool WaitFor(const uint64_t& counter, uint64_t count) {
  AwaitInterrupts(kPatience, [&] { return Count(counter) >= count; });
  return Count(counter) == count;
}

// `count` interrupts have come for `causes`, or up to `spare` more, and nothing comes now that is not one of those.
void CheckQuiet(uint64_t count, uint64_t causes, uint64_t spare = 0) {
  if (ends_early) spare += causes;
  AwaitInterrupts(kQuiet, [] { return false; });
  const uint64_t came = Count(interrupts);
  CHECK(6, came >= count && came <= count + spare, "%lu interrupts, not %lu", came, count);
}

void Find() {
  while (devices < 2 && sources[devices].edu.Start(devices)) {
    CHECK(1, sources[devices].edu.Alive(), "device %u", devices);
    sources[devices].edu.TakeInterrupt();  // what whoever had it before has left
    ++devices;
  }
  CHECK(1, devices != 0, "no edu-compatible device answers");
  const Bdf first = sources[0].edu.function().bdf;
  const uint32_t line = ReadConfig8(first, pci::kInterruptLine);
  if (devices == 2) {
    const uint32_t other = ReadConfig8(sources[1].edu.function().bdf, pci::kInterruptLine);
    CHECK(2, other == line, "lines %u and %u", line, other);
  }
  SetTrapHandler(kVector, OnInterrupt);
  CHECK(1, sources[0].edu.UseIntx(kVector), "no INTx");
  Print("%u devices on line %u\n", devices, line);
}

void TestInTurn() {
  const uint64_t before = Count(interrupts);
  for (uint64_t i = 1; i <= times; ++i) {
    for (unsigned d = 0; d < devices; ++d) {
      Source& source = sources[d];
      source.edu.Raise(static_cast<uint32_t>(i));
      CHECK(3, WaitFor(source.taken, i), "device %u: %lu of %lu", d, Count(source.taken), i);
      CHECK(3, source.cause == i, "device %u: cause 0x%x, not 0x%lx", d, source.cause, i);
    }
  }
  CheckQuiet(before + times * devices, times * devices);
  Print("in turn: %lu interrupts\n", Count(interrupts) - before);
}

void TestLevel() {
  Source& source = sources[0];
  const uint64_t before = Count(interrupts), taken = Count(source.taken);
  for (uint64_t i = 1; i <= times; ++i) {
    leave_alone = kLeftAlone;
    source.edu.Raise(1);
    CHECK(4, WaitFor(source.taken, taken + i), "%lu interrupts for %lu causes",
          Count(interrupts) - before, i);
  }
  CheckQuiet(before + times * (kLeftAlone + 1), times);
  Print("left alone: %lu interrupts\n", Count(interrupts) - before);
}

// A device that is not served yet may say so twice: at first, late, and when the other's interrupt ends. Then
// the line is up once more than there is a cause, as happens on lines that are shared.
void TestTogether() {
  const uint64_t before = Count(interrupts);
  one_each = true;
  const uint64_t taken[2] = {Count(sources[0].taken), Count(sources[1].taken)};
  for (uint64_t i = 1; i <= times; ++i) {
    for (const Source& source : sources) source.edu.Raise(1);
    for (unsigned d = 0; d < 2; ++d)
      CHECK(5, WaitFor(sources[d].taken, taken[d] + i), "device %u: %lu of %lu", d,
            Count(sources[d].taken) - taken[d], i);
  }
  one_each = false;
  CheckQuiet(before + times * 2, times * 2, times);
  Print("together: %lu causes, %lu interrupts\n", times * 2, Count(interrupts) - before);
}

// What a cause before this was granted may come as late as here, where it must not take the new one: it is left alone.
void TestDisabled() {
  const Source& source = sources[0];
  const uint64_t taken = Count(source.taken);
  const Bdf bdf = source.edu.function().bdf;
  const uint16_t command = ReadConfig16(bdf, pci::kCommand);
  const uint64_t before = Count(interrupts);
  WriteConfig16(bdf, pci::kCommand, command | pci::kCommandIntxOff);
  leave_alone = ends_early ? 1 : 0;
  source.edu.Raise(1);
  CheckQuiet(before, 1);
  CHECK(7, Count(source.taken) == taken, "it came, although it was held back");
  was_late = Count(interrupts) != before;
  leave_alone = 0;
  WriteConfig16(bdf, pci::kCommand, command);
  CHECK(7, WaitFor(source.taken, taken + 1), "%lu interrupts", Count(interrupts) - before);
  CheckQuiet(before + 1, 2);
  Print("disabled: none, and one after\n");
}

}  // namespace

void GuestMain() {
  times = CommandLineNumber("count", 1000);
  Find();
  TestInTurn();
  TestLevel();
  if (devices == 2) TestTogether();
  TestDisabled();
  Print("in all: %lu interrupts%s%s\n", Count(interrupts), ends_early ? ", which KVM ends early" : "",
        was_late ? ", one late" : "");
  if (CommandLineHas("wait")) SerialSkipLine();
}

}  // namespace guest
