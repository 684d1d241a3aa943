// hammer: reads and writes a BAR from every CPU, in ring 3 and in ring 0, while the VMM places it,
// takes it away and moves it, and believes nothing but the two values that are right.
//
// Command line: bar=ADDRESS other=ADDRESS (where it may be), size=BYTES, control=ADDRESS (a trapped
// register that reads 0 until it is time to end), expect=COUNT (how many right values are at
// least to be seen), ring3 (no accesses in ring 0), vanish (what is at bar= disappears for good,
// other= stays).
// Every 8 bytes of the BAR but its last page hold kPattern + their offset; the last page is written to.
//
// Check numbers:
//   1  a read gave neither the pattern nor all ones
//   2  fewer right values than expected: the BAR was hardly ever there
//   3  vanish: the BAR that disappeared still answers
//   4  vanish: the BAR that stays does not answer
#include <stdint.h>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/cpu.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/print.h"
#include "lib/random.h"
#include "lib/ring3.h"
#include "lib/smp.h"

namespace guest {
namespace {

constexpr uint64_t kPattern = 0x5a5a'0000'0000'0000;
constexpr uint64_t kAllOnes = ~0ull;
constexpr uint64_t kScratchPage = 4096;
constexpr unsigned kRing3Turns = 2000;
constexpr unsigned kRing0Turns = 20;

struct Shared {
  uint64_t bars[2] = {};
  uint64_t size = 0;
  uint64_t control = 0;
  bool both_rings = true;
  bool stop = false;
  uint64_t right = 0;
  uint64_t ones = 0;
  uint64_t wrong = 0;          // a value that is neither
  uint64_t wrong_address = 0;
};
constinit Shared shared;

struct Batch {
  Random random;
  unsigned turns;
};

// One batch of accesses; the same code in both rings.
uint64_t Hammer(void* argument) {
  Batch& batch = *static_cast<Batch*>(argument);
  uint64_t right = 0;
  uint64_t ones = 0;
  for (unsigned i = 0; i < batch.turns; ++i) {
    const uint64_t bar = shared.bars[i & 1];
    const uint64_t offset = batch.random.Below((shared.size - kScratchPage) / 8) * 8;
    const uint64_t value = Read<uint64_t>(bar + offset);
    if (value == kPattern + offset) {
      ++right;
    } else if (value == kAllOnes) {
      ++ones;
    } else {
      __atomic_store_n(&shared.wrong_address, bar + offset, __ATOMIC_RELAXED);
      __atomic_store_n(&shared.wrong, value, __ATOMIC_RELEASE);
    }
    if (i % 16 == 0) Write<uint64_t>(bar + shared.size - kScratchPage + offset % kScratchPage, value);
  }
  __atomic_fetch_add(&shared.right, right, __ATOMIC_RELAXED);
  __atomic_fetch_add(&shared.ones, ones, __ATOMIC_RELAXED);
  return right;
}

void Work(void*) {
  Batch ring3{Random(ThisCpu().index * 2 + 1), kRing3Turns};
  Batch ring0{Random(ThisCpu().index * 2 + 2), kRing0Turns};
  while (!__atomic_load_n(&shared.stop, __ATOMIC_ACQUIRE)) {
    RunInRing3(Hammer, &ring3);
    if (shared.both_rings) Hammer(&ring0);
    if (__atomic_load_n(&shared.wrong, __ATOMIC_ACQUIRE) != 0) return;
    if (ThisCpu().index == 0 && Read<uint32_t>(shared.control) != 0)
      __atomic_store_n(&shared.stop, true, __ATOMIC_RELEASE);
  }
}

}  // namespace

void GuestMain() {
  shared.bars[0] = CommandLineNumber("bar", 0);
  shared.bars[1] = CommandLineNumber("other", shared.bars[0]);
  shared.size = CommandLineNumber("size", 16384);
  shared.control = CommandLineNumber("control", 0);
  shared.both_rings = !CommandLineHas("ring3");
  for (const uint64_t bar : shared.bars) Map({bar, shared.size}, Caching::kWriteBack);
  Map({shared.control, 4096}, Caching::kUncached);
  const unsigned cpus = StartCpus();
  Print("%u CPUs hammer 0x%lx and 0x%lx\n", cpus, shared.bars[0], shared.bars[1]);
  RunOnAll(Work, nullptr);
  Print("%lu right, %lu all ones\n", shared.right, shared.ones);
  CHECK(1, shared.wrong == 0, "0x%lx at 0x%lx", shared.wrong, shared.wrong_address);
  CHECK(2, shared.right >= CommandLineNumber("expect", 1), "%lu", shared.right);
  if (!CommandLineHas("vanish")) return;
  CHECK(3, Read<uint64_t>(shared.bars[0]) == kAllOnes, "0x%lx", Read<uint64_t>(shared.bars[0]));
  CHECK(4, Read<uint64_t>(shared.bars[1]) == kPattern, "0x%lx", Read<uint64_t>(shared.bars[1]));
}

}  // namespace guest
