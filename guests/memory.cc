// memory: RAM is where the device tree says, all of it, and nothing is beside it. What the image,
// its heap and the boot modules occupy is left alone. big=N sizes the verified chunks in MiB
// (default 4).
//
// Check numbers:
//   1  there is a bank, and no two overlap
//   2  a bank's first and last pages hold patterns of 1, 2, 4 and 8 bytes, written in ring 0
//   3  the same, the whole page, in ring 3
//   4  addresses a power of two away from a bank's ends are all different memory
//   5  large chunks at a bank's ends keep pseudo-random data
//   6  the page after a bank, where it is neither RAM nor a PCI window, reads all ones
//   7  and swallows writes
//   8  an 8-byte access across a bank's end sees RAM below and all ones above
//
// 6 to 8 need a device tree: a memory map without one does not name everything there is.

#include <stdint.h>

#include <initializer_list>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/platform.h"
#include "lib/print.h"
#include "lib/random.h"
#include "lib/ring3.h"

namespace guest {
namespace {

// A value that depends on the address and the width, never 0 or all ones.
template <typename T>
T Pattern(uint64_t address) {
  return static_cast<T>((address ^ address >> 12) * 0x9e3779b97f4a7c15 >> 24 | 1) ^ sizeof(T) * 2;
}

// Writes all of `range` in T's width and reads it back; returns the first bad address, or 0.
template <typename T>
uint64_t Verify(Range range) {
  for (uint64_t a = range.start; a < range.end(); a += sizeof(T)) Write<T>(a, Pattern<T>(a));
  for (uint64_t a = range.start; a < range.end(); a += sizeof(T)) {
    if (Read<T>(a) != Pattern<T>(a)) return a;
  }
  return 0;
}

uint64_t VerifyAllWidths(void* argument) {
  const Range range = *static_cast<const Range*>(argument);
  if (const uint64_t bad = Verify<uint8_t>(range)) return bad;
  if (const uint64_t bad = Verify<uint16_t>(range)) return bad;
  if (const uint64_t bad = Verify<uint32_t>(range)) return bad;
  return Verify<uint64_t>(range);
}

void TestPage(uint64_t page) {
  if (InUse({page, kPageSize})) {
    Print("    page 0x%lx in use\n", page);
    return;
  }
  // The page's ends only: in ring 0 each instruction may be emulated.
  Range ends[] = {{page, 32}, {page + kPageSize - 32, 32}};
  for (Range& end : ends) {
    const uint64_t bad = VerifyAllWidths(&end);
    CHECK(2, bad == 0, "at 0x%lx", bad);
  }
  Range whole{page, kPageSize};
  const uint64_t bad = RunInRing3(VerifyAllWidths, &whole);
  CHECK(3, bad == 0, "at 0x%lx", bad);
}

// Address lines: one word at each power of two from either end of the bank.
uint64_t VerifyDistinct(void* argument) {
  const Range bank = *static_cast<const Range*>(argument);
  for (const bool check : {false, true}) {
    for (uint64_t distance = kPageSize; distance < bank.size; distance *= 2) {
      for (const uint64_t a : {bank.start + distance, bank.end() - distance}) {
        if (InUse({a, 8})) continue;
        if (!check) Write<uint64_t>(a, Pattern<uint64_t>(a));
        if (check && Read<uint64_t>(a) != Pattern<uint64_t>(a)) return a;
      }
    }
  }
  return 0;
}

uint64_t VerifyRandom(void* argument) {
  const Range range = *static_cast<const Range*>(argument);
  Random fill(range.start);
  for (uint64_t a = range.start; a < range.end(); a += 8) Write<uint64_t>(a, fill.Next());
  Random check(range.start);
  for (uint64_t a = range.start; a < range.end(); a += 8) {
    if (Read<uint64_t>(a) != check.Next()) return a;
  }
  return 0;
}

enum class End { kFirst, kLast };

// Up to `size` bytes at one end of the bank, as far as they are free.
void TestChunk(const Range& bank, End end, uint64_t size) {
  if (size > bank.size) size = bank.size;
  Range range{end == End::kFirst ? bank.start : bank.end() - size, size};
  while (range.size > 0 && InUse(range)) {
    range.size -= kPageSize;
    if (end == End::kLast) range.start += kPageSize;
  }
  const uint64_t bad = RunInRing3(VerifyRandom, &range);
  CHECK(5, bad == 0, "at 0x%lx", bad);
  Print("    %lu KiB verified at 0x%lx\n", range.size >> 10, range.start);
}

// Whether the tree says that something is there.
bool IsDescribed(const Range& range) {
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    if (platform.ram[i].Overlaps(range)) return true;
  }
  return platform.mmio_window.Overlaps(range) || platform.mmio64_window.Overlaps(range) ||
         platform.ecam.Overlaps(range);
}

template <typename T>
void CheckNothingAt(uint64_t address) {
  constexpr T kOnes = static_cast<T>(~T{0});
  CHECK(6, Read<T>(address) == kOnes, "0x%lx, %zu bytes", address, sizeof(T));
  Write<T>(address, Pattern<T>(address));
  CHECK(7, Read<T>(address) == kOnes, "0x%lx, %zu bytes", address, sizeof(T));
}

void TestBeyond(const Range& bank) {
  const Range after{bank.end(), kPageSize};
  if (!platform.from_fdt || IsDescribed(after)) return;
  Map(after, Caching::kUncached);
  for (const uint64_t offset : {0ul, 64ul, kPageSize - 8}) {
    CheckNothingAt<uint8_t>(after.start + offset);
    CheckNothingAt<uint16_t>(after.start + offset);
    CheckNothingAt<uint32_t>(after.start + offset);
    CheckNothingAt<uint64_t>(after.start + offset);
  }
  if (!InUse({bank.end() - 4, 4})) {
    Write<uint32_t>(bank.end() - 4, 0x12345678);
    const uint64_t across = Read<uint64_t>(bank.end() - 4);
    CHECK(8, across == 0xffffffff12345678, "0x%lx", across);
    Write<uint64_t>(bank.end() - 4, 0xdeadbeef87654321);
    CHECK(8, Read<uint32_t>(bank.end() - 4) == 0x87654321, "the half in RAM was not written");
    CHECK(8, Read<uint32_t>(bank.end()) == 0xffffffff, "the half beyond was kept");
  }
  Print("    nothing at 0x%lx\n", after.start);
}

void CheckBanks() {
  CHECK(1, platform.ram_count > 0);
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    for (unsigned j = 0; j < i; ++j) CHECK(1, !platform.ram[i].Overlaps(platform.ram[j]));
  }
}

}  // namespace

void GuestMain() {
  CheckBanks();
  const uint64_t big = CommandLineNumber("big", 4) << 20;
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    Range bank = platform.ram[i];
    Print("  RAM 0x%09lx-0x%09lx (%lu KiB)\n", bank.start, bank.end() - 1, bank.size >> 10);
    // A memory map without a tree may have banks that end within a page.
    const uint64_t end = bank.end() & ~(kPageSize - 1);
    bank.start = (bank.start + kPageSize - 1) & ~(kPageSize - 1);
    bank.size = end - bank.start;
    TestPage(bank.start);
    TestPage(bank.end() - kPageSize);
    const uint64_t bad = RunInRing3(VerifyDistinct, &bank);
    CHECK(4, bad == 0, "at 0x%lx", bad);
    TestChunk(bank, End::kFirst, big);
    TestChunk(bank, End::kLast, big);
    TestBeyond(platform.ram[i]);
  }
}

}  // namespace guest
