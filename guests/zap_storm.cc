// zap_storm: decode of a BAR goes and comes back all the time, while CPUs and a peer's DMA hit it.
// Nobody may ever see anything but what is in the BAR or what an access that nobody answers gives,
// and afterwards all works as before.
//
// The boot CPU ends decode and restores it, in all ways that the target has (lib/p2p.h): COMMAND,
// another address, D3hot, FLR. CPU 1 drives the peer (lib/initiator.h), the others read and write
// the BAR at both its addresses.
//
// Command line: toggles=N (200), seconds=N ends it earlier, seed=N; wait waits for a line on the
// serial port after "ready" and again after "done".
//
// Every 8 bytes of the BAR's first 64 KiB hold kPattern + their offset; then come a page for the
// peer's writes and one for the CPUs'.
//
// Check numbers:
//   1  there are an initiator and three CPUs
//   2  there is a target with a memory BAR large enough
//   3  a transfer ends
//   4  a CPU's read gave neither the pattern nor all ones
//   5  what the peer read is neither the pattern nor what is there when nothing arrives
//   6  afterwards the BAR holds what it held, but for the two pages
//   7  afterwards what a peer writes arrives, and it reads what is there
//   8  without decode CPUs see all ones, with it the pattern; the peer's transfers go on in both
#include <stdint.h>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/initiator.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/random.h"
#include "lib/ring3.h"
#include "lib/serial.h"
#include "lib/smp.h"
#include "lib/time.h"

namespace guest {
namespace {

constexpr uint64_t kPattern = 0x5a5a'0000'0000'0000;  // in the BAR
constexpr uint64_t kByPeer = 0x9e9e'0000'0000'0000;   // what the peer writes there
constexpr uint64_t kNothing = 0xc0c0'c0c0'c0c0'c0c0;  // in the peer's buffer before it reads the BAR
constexpr uint64_t kAllOnes = ~0ull;
constexpr uint64_t kPatternSize = 64 * 1024;
constexpr uint64_t kPeerPage = kPatternSize;
constexpr uint64_t kCpuPage = kPeerPage + kPageSize;
constexpr uint64_t kUsed = kCpuPage + kPageSize;
constexpr uint64_t kChunk = 1024;  // of the peer's transfers
constexpr unsigned kRing3Turns = 2000;
constexpr unsigned kRing0Turns = 20;

constinit Target target;
constinit Initiator peer;

struct Shared {
  bool stop = false;
  uint64_t right = 0;
  uint64_t ones = 0;
  uint64_t turns = 0;  // of the peer
  uint64_t nothing = 0, by_peer = 0, result = 0;  // kChunk bytes of RAM each
};
constinit Shared shared;

template <typename T>
T Load(const T& value) {
  return __atomic_load_n(&value, __ATOMIC_ACQUIRE);
}
void Add(uint64_t& counter, uint64_t value) {
  __atomic_fetch_add(&counter, value, __ATOMIC_RELEASE);
}

// The half of a word that is at `address`.
uint32_t Dword(uint64_t word, uint64_t address) {
  return static_cast<uint32_t>(word >> (address % 8 * 8));
}

// Each word is `first`, or with `step` 1 `first` and its offset.
void FillWords(uint64_t address, uint64_t size, uint64_t first, uint64_t step) {
  for (uint64_t i = 0; i < size; i += 8) Write<uint64_t>(address + i, first + i * step);
}

// ---- The CPUs ---------------------------------------------------------------------------------------

struct Batch {
  Random random;
  unsigned turns;
  uint64_t wrong = 0, wrong_address = 0;
};

// One batch of accesses; the same code in both rings.
uint64_t Hammer(void* argument) {
  Batch& batch = *static_cast<Batch*>(argument);
  uint64_t right = 0;
  uint64_t ones = 0;
  for (unsigned i = 0; i < batch.turns; ++i) {
    // Seldom at the other address, where it hardly ever is: each such access is an exit.
    const uint64_t bar = i % 16 == 1 ? target.other() : target.start();
    const uint64_t offset = batch.random.Below(kPatternSize / 8) * 8;
    const uint64_t value = Read<uint64_t>(bar + offset);
    if (value == kPattern + offset) {
      ++right;
    } else if (value == kAllOnes) {
      ++ones;
    } else {
      batch.wrong = value;
      batch.wrong_address = bar + offset;
      return 0;
    }
    if (i % 16 == 0) Write<uint64_t>(bar + kCpuPage + offset % kPageSize, value);
  }
  Add(shared.right, right);
  Add(shared.ones, ones);
  return 0;
}

void HammerUntilStopped(void*) {
  Batch ring3{Random(ThisCpu().index * 2), kRing3Turns};
  Batch ring0{Random(ThisCpu().index * 2 + 1), kRing0Turns};
  while (!Load(shared.stop)) {
    RunInRing3(Hammer, &ring3);
    Hammer(&ring0);
    CHECK(4, ring3.wrong == 0, "0x%lx at 0x%lx", ring3.wrong, ring3.wrong_address);
    CHECK(4, ring0.wrong == 0, "0x%lx at 0x%lx", ring0.wrong, ring0.wrong_address);
  }
}

// ---- The peer ---------------------------------------------------------------------------------------

void Move(uint64_t from, uint64_t to) {
  CHECK(3, peer.Load(from, kChunk), "from 0x%lx", from);
  CHECK(3, peer.Store(to, kChunk), "to 0x%lx", to);
}

void PeerUntilStopped(void*) {
  Random random(CommandLineNumber("seed", 1) + 1);
  while (!Load(shared.stop)) {
    Move(shared.by_peer, target.start() + kPeerPage);
    // A read that is refused leaves its buffer as it was, or zeros or ones in it. Decode may come and go
    // between any two of its dwords: PCI Express promises no more (Base Specification 2.4.3).
    const uint64_t offset = random.Below(kPatternSize / kChunk) * kChunk;
    CHECK(3, peer.Load(shared.nothing, kChunk), "from RAM");
    Move(target.start() + offset, shared.result);
    for (uint64_t i = 0; i < kChunk; i += 4) {
      const uint32_t dword = Read<uint32_t>(shared.result + i);
      const uint32_t right = Dword(kPattern + offset + i / 8 * 8, i);
      CHECK(5, dword == right || dword == Dword(kNothing, i) || dword == 0 || dword == Dword(kAllOnes, i),
            "0x%x from offset 0x%lx", dword, offset + i);
    }
    Add(shared.turns, 1);
  }
}

// ---- The storm --------------------------------------------------------------------------------------

using Cause = Target::Cause;

// Ends decode in one of the ways the target has. D3hot and FLR come seldom: after them a driver has to
// wait for long (10 and 100 ms).
Cause EndDecode(uint64_t number, Random& random) {
  Cause cause = random.Below(2) == 0 ? Cause::kDecode : Cause::kMove;
  if (number % 32 == 8) cause = Cause::kPower;
  if (number % 256 == 16) cause = Cause::kReset;
  if (target.End(cause)) return cause;
  target.End(Cause::kDecode);
  return Cause::kDecode;
}

// Lets the others have the BAR as it is for a moment, mostly a very short one.
void Dwell(Random& random) {
  const uint64_t turns = random.Below(8) == 0 ? random.Below(2000) : random.Below(4);
  for (uint64_t i = 0; i < turns; ++i) Pause();
}

uint64_t Storm() {
  const uint64_t toggles = CommandLineNumber("toggles", 200);
  const uint64_t seconds = CommandLineNumber("seconds", 0);
  Random random(CommandLineNumber("seed", 1));
  Deadline deadline(seconds * 1'000'000);
  uint64_t number = 0;
  while (number < toggles && (seconds == 0 || !deadline.Passed())) {
    ++number;
    const Cause cause = EndDecode(number, random);
    Dwell(random);
    target.Restore(cause);
    Dwell(random);
    if (number % (toggles / 10 + 1) == 0)
      Print("%lu toggles: %lu right, %lu all ones, %lu turns of the peer\n", number, Load(shared.right),
            Load(shared.ones), Load(shared.turns));
  }
  return number;
}

// Waits until the CPUs have seen more of what `seen` counts, and the peer has begun and ended a turn.
void AwaitOthers(const uint64_t& seen) {
  const uint64_t seen_before = Load(seen);
  const uint64_t turns_before = Load(shared.turns);
  Deadline deadline(20'000'000);
  while (Load(seen) == seen_before || Load(shared.turns) < turns_before + 2) {
    CHECK(8, !deadline.Passed(), "%lu more reads, %lu more turns", Load(seen) - seen_before,
          Load(shared.turns) - turns_before);
    Pause();
  }
}

void CheckAfterwards() {
  const uint64_t bar = target.start();
  for (uint64_t i = 0; i < kPatternSize; i += 8)
    CHECK(6, Read<uint64_t>(bar + i) == kPattern + i, "0x%lx at 0x%lx", Read<uint64_t>(bar + i), bar + i);
  for (uint64_t i = 0; i < kPageSize; i += 8) {
    const uint64_t word = Read<uint64_t>(bar + kPeerPage + i);
    const bool by_peer = i < kChunk && word == kByPeer + i;
    CHECK(6, by_peer || word == 0, "0x%lx at 0x%lx", word, bar + kPeerPage + i);
  }
  FillPattern(shared.result, kChunk, 1);
  Move(shared.result, bar + kPeerPage);
  uint64_t where, got;
  CHECK(7, HoldsPattern(bar + kPeerPage, kChunk, 1, &where, &got), "0x%lx holds 0x%lx", where, got);
  FillPattern(bar + kPeerPage, kChunk, 2);
  Move(bar + kPeerPage, shared.result);
  CHECK(7, HoldsPattern(shared.result, kChunk, 2, &where, &got), "0x%lx holds 0x%lx", where, got);
}

void Prepare() {
  CHECK(2, target.Start() && target.size() >= kUsed, "no target");
  CHECK(1, peer.Start(target), "no initiator");
  CHECK(1, StartCpus() >= 3, "%u CPUs", CpuCount());
  shared.nothing = reinterpret_cast<uint64_t>(AllocatePages(1));
  shared.by_peer = reinterpret_cast<uint64_t>(AllocatePages(1));
  shared.result = reinterpret_cast<uint64_t>(AllocatePages(1));
  FillWords(shared.nothing, kChunk, kNothing, 0);
  FillWords(shared.by_peer, kChunk, kByPeer, 1);
  FillWords(target.start(), kPatternSize, kPattern, 1);
  FillWords(target.start() + kPeerPage, kPageSize, 0, 0);
}

}  // namespace

void GuestMain() {
  Prepare();
  Print("ready: BAR at 0x%lx\n", target.start());
  if (CommandLineHas("wait")) SerialSkipLine();
  RunOn(1, PeerUntilStopped, nullptr);
  for (unsigned cpu = 2; cpu < CpuCount(); ++cpu) RunOn(cpu, HammerUntilStopped, nullptr);
  const uint64_t toggles = Storm();
  target.End(Cause::kDecode);
  AwaitOthers(shared.ones);
  target.Restore(Cause::kDecode);
  AwaitOthers(shared.right);
  __atomic_store_n(&shared.stop, true, __ATOMIC_RELEASE);
  for (unsigned cpu = 1; cpu < CpuCount(); ++cpu) WaitFor(cpu);
  CheckAfterwards();
  Print("done: %lu toggles, %lu right, %lu all ones, %lu turns of the peer\n", toggles, shared.right,
        shared.ones, shared.turns);
  if (CommandLineHas("wait")) SerialSkipLine();
}

}  // namespace guest
