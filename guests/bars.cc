// bars: every BAR of every function beside the host bridge answers where the guest has put it, and
// nowhere else, whatever its kind.
//
// Prints where BARs may be, and a line for each BAR and each expansion ROM:
//   windows 0xc0000000+0x20000000 0x100000000+0xfc00000000
//   00:01.0 BAR 2 mem64 0x100000000 size 0x1000000 holds 0x0
//   00:02.0 ROM size 0x800 sum 0x3fc
//
// Check numbers:
//   1  there is a BAR
//   2  it is aligned, in a window of the host bridge, and clear of all others
//   3  moved while it decodes, it holds at the new place what it held at the old one
//   4  and nothing answers at the old one
//   5  nor while one half of a 64-bit address is written and the other is not
//   6  of two BARs at one place the one that came first answers, and the other when that has gone
//   7  an Intel NIC's I/O BAR leads to its registers
//   8  an expansion ROM starts with its signature, and answers only while it is enabled
#include <stdint.h>

#include "lib/check.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/pci.h"
#include "lib/platform.h"
#include "lib/print.h"

namespace guest {
namespace {

constexpr uint32_t kHostBridge = 0x060000;
constexpr uint16_t kIntel = 0x8086;
constexpr unsigned kRom = 0x30;
constexpr uint32_t kRomEnable = 1;
constexpr uint16_t kRomSignature = 0xaa55;

struct Place {
  Bdf bdf;
  uint16_t vendor;
  Bar bar;
};
constinit Place places[64] = {};
constinit unsigned count = 0;

const Range& WindowOf(const Place& place) {
  if (place.bar.io) return platform.io_window;
  const bool high = place.bar.range.start >= platform.mmio64_window.start;
  return high ? platform.mmio64_window : platform.mmio_window;
}

uint32_t ReadAt(const Place& place, uint64_t address) {
  return place.bar.io ? In32(static_cast<uint16_t>(address)) : Read<uint32_t>(address);
}

void WriteHalf(const Place& place, unsigned half, uint64_t address) {
  WriteConfig32(place.bdf, pci::kBar0 + 4 * (place.bar.index + half),
                static_cast<uint32_t>(address >> (32 * half)));
}

void Move(const Place& place, uint64_t address) {
  WriteHalf(place, 0, address);
  if (place.bar.wide) WriteHalf(place, 1, address);
}

// Above all that was assigned: room for `size` bytes, aligned to them.
uint64_t FreePlace(const Place& place, uint64_t size) {
  const uint64_t start = (WindowOf(place).end() - size) & ~(size - 1);
  if (!place.bar.io) Map({start, size}, Caching::kUncached);
  return start;
}

void Collect(const PciFunction& function) {
  for (unsigned i = 0; i < BarRegisters(function) && count < 64; ++i) {
    Place& place = places[count];
    place.bdf = function.bdf;
    place.vendor = function.vendor;
    if (!ReadBar(function, i, &place.bar) || place.bar.range.size == 0) continue;
    ++count;
    const Range& range = place.bar.range;
    CHECK(2, range.start % range.size == 0, "0x%lx size 0x%lx", range.start, range.size);
    CHECK(2, WindowOf(place).Contains(range.start) && WindowOf(place).Contains(range.end() - 1),
          "0x%lx size 0x%lx", range.start, range.size);
    for (unsigned j = 0; j + 1 < count; ++j)
      CHECK(2, places[j].bar.io != place.bar.io || !places[j].bar.range.Overlaps(range), "0x%lx",
            range.start);
    if (!place.bar.io) Map(range, Caching::kUncached);
  }
  WriteConfig16(function.bdf, pci::kCommand, pci::kCommandIo | pci::kCommandMemory);
}

void CheckMoves(const Place& place) {
  const Bar& bar = place.bar;
  const uint64_t old = bar.range.start;
  const uint32_t held = ReadAt(place, old);
  Print("%02x:%02x.%u BAR %u %s 0x%lx size 0x%lx holds 0x%x\n", place.bdf.bus, place.bdf.device,
        place.bdf.function, bar.index, bar.io ? "io" : bar.wide ? "mem64" : "mem32", old,
        bar.range.size, held);
  const uint64_t other = FreePlace(place, bar.range.size);
  if (other == old) return;
  if (bar.wide) {
    WriteHalf(place, 1, 0x7777ull << 32);
    CHECK(5, ReadAt(place, old) == ~0u, "at 0x%lx: 0x%x", old, ReadAt(place, old));
    WriteHalf(place, 1, other);
    WriteHalf(place, 0, other);
  } else {
    Move(place, other);
  }
  CHECK(3, ReadAt(place, other) == held, "at 0x%lx: 0x%x", other, ReadAt(place, other));
  CHECK(4, ReadAt(place, old) == ~0u, "at 0x%lx: 0x%x", old, ReadAt(place, old));
  Move(place, old);
  CHECK(3, ReadAt(place, old) == held, "at 0x%lx: 0x%x", old, ReadAt(place, old));
  CHECK(4, ReadAt(place, other) == ~0u, "at 0x%lx: 0x%x", other, ReadAt(place, other));
}

// False where nobody could tell the two apart, or where one is trapped for being less than a page: that
// leaves the page to the other.
bool CheckOverlap(const Place& first, const Place& second) {
  const uint64_t larger =
      first.bar.range.size > second.bar.range.size ? first.bar.range.size : second.bar.range.size;
  if (first.bar.io || second.bar.io || &WindowOf(first) != &WindowOf(second)) return false;
  if (first.bar.range.size < kPageSize || second.bar.range.size < kPageSize) return false;
  const uint32_t held[] = {ReadAt(first, first.bar.range.start), ReadAt(second, second.bar.range.start)};
  if (held[0] == held[1]) return false;
  const uint64_t shared = FreePlace(first, larger);
  if (first.bar.range.Contains(shared) || second.bar.range.Contains(shared)) return false;
  Move(first, shared);
  Move(second, shared);
  CHECK(6, ReadAt(first, shared) == held[0], "at 0x%lx: 0x%x", shared, ReadAt(first, shared));
  Move(first, first.bar.range.start);
  CHECK(6, ReadAt(second, shared) == held[1], "at 0x%lx: 0x%x", shared, ReadAt(second, shared));
  Move(second, second.bar.range.start);
  CHECK(6, ReadAt(second, second.bar.range.start) == held[1], "0x%x", held[1]);
  return true;
}

// Address and data ports of the 8257x family, at the start of its I/O BAR; register 8 is STATUS.
void CheckIntelPorts(const Place& ports, const Place& registers) {
  const auto port = static_cast<uint16_t>(ports.bar.range.start);
  Out32(port, 8);
  const uint32_t status = Read<uint32_t>(registers.bar.range.start + 8);
  CHECK(7, In32(port + 4) == status, "ports say 0x%x, memory 0x%x", In32(port + 4), status);
}

void CheckRom(const PciFunction& function) {
  WriteConfig32(function.bdf, kRom, ~kRomEnable);
  const uint32_t mask = ReadConfig32(function.bdf, kRom) & ~0x7ffu;
  if (mask == 0) return;
  const uint32_t size = ~mask + 1;
  const uint64_t start = (platform.mmio_window.end() - size) & ~uint64_t{size - 1};
  WriteConfig32(function.bdf, kRom, static_cast<uint32_t>(start));
  CHECK(8, Read<uint32_t>(start) == ~0u, "not enabled: 0x%x", Read<uint32_t>(start));
  WriteConfig32(function.bdf, kRom, static_cast<uint32_t>(start) | kRomEnable);
  CHECK(8, Read<uint16_t>(start) == kRomSignature, "0x%x", Read<uint16_t>(start));
  uint64_t sum = 0;
  for (uint64_t i = 0; i < size; i += 4) {
    const uint32_t value = Read<uint32_t>(start + i);
    for (unsigned byte = 0; byte < 4; ++byte) sum += value >> (8 * byte) & 0xff;
  }
  WriteConfig32(function.bdf, kRom, 0);
  CHECK(8, Read<uint32_t>(start) == ~0u, "no more enabled: 0x%x", Read<uint32_t>(start));
  Print("%02x:%02x.%u ROM size 0x%x sum 0x%lx\n", function.bdf.bus, function.bdf.device,
        function.bdf.function, size, sum);
}

}  // namespace

void GuestMain() {
  ForEachFunction([](const PciFunction& function) {
    if (function.class_code != kHostBridge) Collect(function);
  });
  CHECK(1, count != 0, "no BAR");
  Print("windows 0x%lx+0x%lx 0x%lx+0x%lx\n", platform.mmio_window.start, platform.mmio_window.size,
        platform.mmio64_window.start, platform.mmio64_window.size);
  unsigned overlaps = 0;
  for (unsigned i = 0; i < count; ++i) {
    CheckMoves(places[i]);
    for (unsigned j = 0; j < i; ++j) overlaps += CheckOverlap(places[i], places[j]) ? 1 : 0;
    if (!places[i].bar.io || places[i].vendor != kIntel) continue;
    for (unsigned j = 0; j < i; ++j)
      if (places[j].bdf.device == places[i].bdf.device && places[j].bar.index == 0)
        CheckIntelPorts(places[i], places[j]);
  }
  ForEachFunction([](const PciFunction& function) {
    if (function.class_code != kHostBridge) CheckRom(function);
  });
  Print("%u BARs, %u pairs at one place\n", count, overlaps);
}

}  // namespace guest
