// zap_dma: a peer's DMA at a BAR before, while and after the BAR stops decoding (G2, G7).
//
// Command line (lib/p2p.h has the target): cause=decode|power|reset|move|bus: this guest ends the decode,
// from a second CPU where there is one, while the first goes on with the DMA. cause=reboot: it resets the
// machine. cause=outside: the host does something, as soon as it reads "hammering". cause=close: the guest
// ends with a DMA under way. at=OFFSET: where in the BAR.
// wait waits for a line on the serial port before "again" and before "restored", so that the host can
// meddle with the real device in between. lost: the target is not to come back. forgets: its memory is
// zeros when it comes back.
//
// Prints "before", "hammering", "ended", "again" (another DMA, after the host has meddled), "restored".
//
// Check numbers:
//   1  there is an initiator, and it is alive
//   2  there is a target with a memory BAR, and it can do what cause= asks for
//   3  a transfer ends
//   4  before: what a peer writes arrives
//   5  ended: a CPU's read gives all ones, its write is dropped
//   6  restored: the BAR holds what it held before; no DMA that came meanwhile arrived
//   7  restored: what a peer writes arrives again
//   8  hammering: as long as a CPU can read the BAR, each DMA arrives up to some point and none after it
//   9  hammering: the BAR stops decoding at all
//  10  after the reboot the BAR is where it was
//  11  lost: the device answers no more
#include <stdint.h>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/edu.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/power.h"
#include "lib/print.h"
#include "lib/serial.h"
#include "lib/smp.h"
#include "lib/string.h"
#include "lib/time.h"

namespace guest {
namespace {

constexpr uint64_t kSize = 256;
constexpr uint64_t kWords = Edu::kBufferSize / sizeof(uint64_t);
constexpr uint64_t kPatience = 60'000'000;

constinit Edu edu;
constinit Target target;
constinit uint64_t bar = 0;  // where in the BAR the DMA goes: kSize bytes, and then a word to hammer at
constinit uint64_t ram = 0;

struct Survivor {
  static constexpr uint64_t kMagic = 0x7a61705f646d61;
  uint64_t magic;
  uint64_t bar;
};

// A pattern of `seed` from RAM through the engine to the BAR.
void WriteByPeer(uint64_t seed) {
  FillPattern(ram, kSize, seed);
  CHECK(3, edu.Transfer(Edu::Direction::kToDevice, ram, kSize), "from RAM");
  CHECK(3, edu.Transfer(Edu::Direction::kFromDevice, bar, kSize), "to the BAR");
}

void CheckBar(unsigned check, uint64_t seed) {
  uint64_t where, got;
  CHECK(check, HoldsPattern(bar, kSize, seed, &where, &got), "0x%lx holds 0x%lx", where, got);
}

// What the DMAs that were under way have left: nothing of those after the end.
void CheckKept() {
  if (!CommandLineHas("forgets")) return CheckBar(6, 1);
  for (uint64_t i = 0; i < kSize; i += 8)
    CHECK(6, Read<uint64_t>(bar + i) == 0, "0x%lx holds 0x%lx", bar + i, Read<uint64_t>(bar + i));
}

// Lets the engine write one word after the other until a CPU finds nobody there.
void Hammer() {
  const uint64_t place = bar + kSize;
  FillPattern(ram, Edu::kBufferSize, 5);
  CHECK(3, edu.Transfer(Edu::Direction::kToDevice, ram, Edu::kBufferSize), "from RAM");
  Print("hammering\n");
  uint64_t held = Read<uint64_t>(place);
  unsigned arrived = 0, refused = 0;
  Deadline deadline(kPatience);
  for (uint64_t i = 0;; i = (i + 1) % kWords) {
    const uint64_t word = Read<uint64_t>(ram + 8 * i);
    if (word == held) continue;  // sent again, it would tell nothing
    CHECK(3, edu.Transfer(Edu::Direction::kFromDevice, place, 8, 8 * i), "hammering");
    const uint64_t now = Read<uint64_t>(place);
    if (now == ~0ull) break;
    if (now == word) {
      CHECK(8, refused == 0, "0x%lx arrived after %u that did not", word, refused);
      ++arrived;
      held = word;
    } else {
      CHECK(8, now == held, "0x%lx instead of 0x%lx", now, held);
      ++refused;
    }
    CHECK(9, !deadline.Passed(), "%u arrived, %u did not", arrived, refused);
  }
  Print("hammered: %u arrived, %u did not while the BAR could be read\n", arrived, refused);
}

struct End {
  Target::Cause cause;
  bool done;
};

void EndDecode(void* argument) {
  End& end = *static_cast<End*>(argument);
  end.done = target.End(end.cause);
}

void ResetMachine(void*) { Reset(); }

// Leaves a DMA under way. (edu takes its time.)
void Leave() {
  FillPattern(ram, kSize, 2);
  CHECK(3, edu.Transfer(Edu::Direction::kToDevice, ram, kSize), "from RAM");
  edu.Begin(Edu::Direction::kFromDevice, bar, kSize);
}

// Until the BAR does not decode any more. cause=reboot does not return.
void EndWhileHammering(const char* name, Target::Cause cause) {
  End end{cause, true};
  const bool outside = Equal(name, "outside"), reboot = Equal(name, "reboot");
  if (!outside && StartCpus() == 1) {
    CHECK(2, !reboot, "cause=reboot wants two CPUs");
    EndDecode(&end);
  } else {
    if (reboot) RunOn(1, ResetMachine, nullptr);
    if (!outside && !reboot) RunOn(1, EndDecode, &end);
    Hammer();
    if (!outside) WaitFor(1);
  }
  CHECK(2, end.done, "the target knows no %s", name);
}

void WaitForHost() {
  if (!CommandLineHas("wait")) return;
  while (SerialRead() != '\n') Pause();
}

// Nobody answers there, and no DMA arrives.
void CheckEnded(const char* name) {
  CHECK(5, Read<uint64_t>(bar) == ~0ull, "0x%lx", Read<uint64_t>(bar));
  Write<uint64_t>(bar, 0);
  WriteByPeer(2);
  Print("ended by %s\n", name);
  WaitForHost();
  WriteByPeer(3);
  Print("again\n");
  WaitForHost();
}

void CheckRestored(Target::Cause cause) {
  if (CommandLineHas("lost")) {
    const uint32_t id = ReadConfig32(target.function().bdf, pci::kId);
    CHECK(11, id == pci::kAbsent && Read<uint64_t>(bar) == ~0ull, "0x%x", id);
    Print("lost\n");
    return;
  }
  target.Restore(cause);
  CheckKept();
  WriteByPeer(4);
  CheckBar(7, 4);
  Print("restored\n");
}

}  // namespace

void GuestMain() {
  CHECK(1, edu.Start() && edu.Alive(), "no edu-compatible device answers");
  CHECK(2, target.Find(), "no target");
  bar = target.start() + CommandLineNumber("at", 0);
  ram = reinterpret_cast<uint64_t>(AllocatePages(1));
  char name[16] = "decode";
  CommandLineText("cause", name, sizeof name);
  Target::Cause cause = Target::Cause::kDecode;
  CHECK(2, Target::ParseCause(name, &cause) || Equal(name, "reboot") || Equal(name, "outside") ||
               Equal(name, "close"), "cause=%s", name);

  auto& survivor = *reinterpret_cast<Survivor*>(FreeRamStart());
  if (survivor.magic == Survivor::kMagic) {
    survivor.magic = 0;
    CHECK(10, bar == survivor.bar, "0x%lx, not 0x%lx", bar, survivor.bar);
  } else {
    target.Restore(Target::Cause::kDecode);
    WriteByPeer(1);
    CheckBar(4, 1);
    Print("before: 0x%lx holds 0x%lx\n", bar, Read<uint64_t>(bar));
    if (Equal(name, "close")) return Leave();
    if (Equal(name, "reboot")) survivor = {Survivor::kMagic, bar};
    EndWhileHammering(name, cause);
  }
  CheckEnded(name);
  CheckRestored(cause);
}

}  // namespace guest
