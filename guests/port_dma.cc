// port_dma: what the root port above a BAR or above an initiator does to peer-to-peer DMA (G7).
//
// Both are behind root ports (lib/p2p.h finds the target). The target's port stops decoding, closes its
// windows, resets its bus; the initiator's lets no request up. Each time a peer's DMA is to reach nobody,
// and all is well again once it is undone.
//
// Prints a line for each: "decode", "windows", "reset", "master".
//
// Check numbers:
//   1  there is an initiator behind a root port, and it is alive
//   2  there is a target with a memory BAR behind a root port
//   3  a transfer ends
//   4  before: what a peer writes arrives
//   5  meanwhile: a CPU's read gives all ones
//   6  undone: the BAR holds what it held before; no DMA that came meanwhile arrived
//   7  under reset the device answers no configuration access, and after it it has reset values
//   8  without the port's bus mastering the initiator's own COMMAND reads as it was written
#include <stdint.h>

#include "lib/check.h"
#include "lib/edu.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/time.h"

namespace guest {
namespace {

constexpr uint64_t kSize = 1024;
constexpr unsigned kMemoryWindow = 0x20, kPrefetchable = 0x24;
constexpr uint32_t kClosed = 0x0000fff0;
constexpr uint64_t kResetTime = 100'000;  // microseconds (PCIe 6.0, 6.6.1)
constexpr uint16_t kForward = pci::kCommandMemory | pci::kCommandMaster;

constinit Edu edu;
constinit Target target;
constinit uint64_t ram = 0;
constinit uint64_t seed = 0;

// A new pattern from RAM through the engine to the BAR, or as far as it comes.
void WriteByPeer() {
  FillPattern(ram, kSize, ++seed);
  CHECK(3, edu.Transfer(Edu::Direction::kToDevice, ram, kSize), "from RAM");
  CHECK(3, edu.Transfer(Edu::Direction::kFromDevice, target.start(), kSize), "to the BAR");
}

void CheckBar(unsigned check, uint64_t want) {
  uint64_t where, got;
  CHECK(check, HoldsPattern(target.start(), kSize, want, &where, &got), "0x%lx holds 0x%lx", where, got);
}

// Something that `end` does to the BAR, and `undo` takes back.
template <typename End, typename Undo>
void Try(const char* name, End end, Undo undo) {
  WriteByPeer();
  CheckBar(4, seed);
  const uint64_t before = seed;
  end();
  CHECK(5, Read<uint64_t>(target.start()) == ~0ull, "0x%lx", Read<uint64_t>(target.start()));
  Write<uint64_t>(target.start(), 0);
  WriteByPeer();
  undo();
  CheckBar(6, before);
  WriteByPeer();
  CheckBar(4, seed);
  Print("%s\n", name);
}

void TryReset(Bdf port) {
  const Bdf bdf = target.function().bdf;
  uint32_t registers[6];
  for (unsigned i = 0; i < 6; ++i) registers[i] = ReadConfig32(bdf, pci::kBar0 + 4 * i);
  const uint16_t control = ReadConfig16(port, pci::kBridgeControl);
  const auto reset = [&] {
    WriteConfig16(port, pci::kBridgeControl, control | pci::kBridgeControlReset);
    CHECK(7, ReadConfig32(bdf, pci::kId) == pci::kAbsent, "0x%x", ReadConfig32(bdf, pci::kId));
    Delay(2'000);
    WriteConfig16(port, pci::kBridgeControl, control);
    Delay(kResetTime);
    CHECK(7, ReadConfig32(bdf, pci::kId) != pci::kAbsent, "it is gone");
    CHECK(7, ReadConfig16(bdf, pci::kCommand) == 0, "COMMAND 0x%x", ReadConfig16(bdf, pci::kCommand));
  };
  Try("reset", reset, [&] {
    for (unsigned i = 0; i < 6; ++i) WriteConfig32(bdf, pci::kBar0 + 4 * i, registers[i]);
    WriteConfig16(bdf, pci::kCommand, kForward);
  });
}

void TryMaster(Bdf port) {
  WriteByPeer();
  const uint64_t before = seed;
  const uint16_t command = ReadConfig16(edu.function().bdf, pci::kCommand);
  WriteConfig16(port, pci::kCommand, pci::kCommandMemory);
  const uint16_t now = ReadConfig16(edu.function().bdf, pci::kCommand);
  CHECK(8, now == command, "COMMAND 0x%x, not 0x%x", now, command);
  WriteByPeer();
  CheckBar(6, before);
  WriteConfig16(port, pci::kCommand, kForward);
  WriteByPeer();
  CheckBar(4, seed);
  Print("master\n");
}

}  // namespace

void GuestMain() {
  Bdf above_edu, above_target;
  CHECK(1, edu.Start() && edu.Alive(), "no edu-compatible device answers");
  CHECK(1, FindBridgeAbove(edu.function(), &above_edu), "no port above it");
  CHECK(2, target.Start(), "no target");
  CHECK(2, FindBridgeAbove(target.function(), &above_target), "no port above it");
  ram = reinterpret_cast<uint64_t>(AllocatePages(1));

  const Bdf port = above_target;
  Try("decode", [&] { WriteConfig16(port, pci::kCommand, pci::kCommandMaster); },
      [&] { WriteConfig16(port, pci::kCommand, kForward); });
  const uint32_t memory = ReadConfig32(port, kMemoryWindow);
  const uint32_t prefetchable = ReadConfig32(port, kPrefetchable);
  const auto set_windows = [&](uint32_t low, uint32_t high) {
    WriteConfig32(port, kMemoryWindow, low);
    WriteConfig32(port, kPrefetchable, high);
  };
  // Both, as a BAR may be in either. The upper halves of the prefetchable one stay as they are.
  Try("windows", [&] { set_windows(kClosed, kClosed); }, [&] { set_windows(memory, prefetchable); });
  TryReset(port);
  TryMaster(above_edu);
}

}  // namespace guest
