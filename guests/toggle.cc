// toggle: how long it takes to end memory decode of the target BAR (lib/p2p.h), and to restore it.
//
// Off and on, toggles=N (10) times; "on" lasts until a read of the BAR is answered by the device.
// Configuration space is reached through its ports, as Linux reaches it, so that a machine with a device
// tree and one without are asked the same way. Prints "off N N ... on N N ...", in nanoseconds.
//
// Check numbers:
//   1  there is a target with a memory BAR
//   2  without decode the BAR does not answer
//   3  with decode it does
#include <stdint.h>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/p2p.h"
#include "lib/print.h"
#include "lib/time.h"

namespace guest {
namespace {

constexpr uint64_t kMark = 0x746f67676c65;
constexpr unsigned kMostToggles = 256;

constinit Target target;
constinit uint64_t off[kMostToggles], on[kMostToggles];

void WriteCommand(uint16_t value) {
  WriteConfig(ConfigMechanism::kPorts, target.function().bdf, pci::kCommand, 2, value);
}

void Toggle(unsigned i) {
  const uint64_t start = ReadTsc();
  WriteCommand(pci::kCommandMaster);
  const uint64_t without = ReadTsc();
  CHECK(2, Read<uint64_t>(target.start()) != kMark, "toggle %u", i);
  const uint64_t again = ReadTsc();
  WriteCommand(pci::kCommandMaster | pci::kCommandMemory);
  CHECK(3, Read<uint64_t>(target.start()) == kMark, "toggle %u", i);
  on[i] = ReadTsc() - again;
  off[i] = without - start;
}

void PrintTimes(const char* name, const uint64_t* times, unsigned count) {
  Print("%s", name);
  for (unsigned i = 0; i < count; ++i) Print(" %lu", times[i] * 1000 / TscPerMicrosecond());
}

}  // namespace

void GuestMain() {
  CHECK(1, target.Start(), "no target");
  const uint64_t wanted = CommandLineNumber("toggles", 10);
  const auto count = static_cast<unsigned>(wanted < kMostToggles ? wanted : kMostToggles);
  Write<uint64_t>(target.start(), kMark);
  for (unsigned i = 0; i < count; ++i) Toggle(i);
  PrintTimes("off", off, count);
  PrintTimes(" on", on, count);
  Print("\n");
}

}  // namespace guest
