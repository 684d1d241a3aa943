// wild: a hostile guest. All CPUs at once make random accesses of every width to random ports, to
// physical addresses with nothing or with devices behind them, and to configuration space;
// misaligned, across registers, pages and regions, as string instructions, as atomic operations, from
// ring 0 and from ring 3.
// It avoids only what ends the VM: 0xf4-0xf7, 0x64, 0x92, 0xcf9, SLP_EN at 0x600; and the LAPIC and
// the I/O APIC. Nothing else may hurt it: at the end it says "alive".
//
// A passed-through device that masters the bus can be told by chance to DMA into this guest's own
// RAM, which is the guest's own loss (check 1 or 2, or an exception). QEMU's q35 can be hung or
// aborted by it, so there it proves nothing.
//
//   seed=N    other sequences (default 1); the same seed is the same sequence on each CPU
//   count=N   accesses of each CPU (default 4000)
//   kinds=N   a mask of the kinds below (default all)
//
// Check numbers:
//   1  the image is unchanged
//   2  a page of RAM is unchanged
//   3  the UART works again after its usual set-up: the scratch register keeps a value

#include <stdint.h>

#include <initializer_list>

#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/pci.h"
#include "lib/platform.h"
#include "lib/print.h"
#include "lib/random.h"
#include "lib/ring3.h"
#include "lib/serial.h"
#include "lib/smp.h"
#include "lib/string.h"

extern "C" uint8_t image_start[];

namespace guest {
namespace {

constexpr uint64_t k1GiB = uint64_t{1} << 30;

// What each CPU has for itself.
struct Mine {
  Random random{1};
  uint64_t accesses = 0;
  // Results of reads go here, so that string and atomic operations have RAM to work with.
  alignas(64) uint8_t scratch[256] = {};
};

struct Wild {
  Mine mine[MAX_CPUS];
  uint64_t kinds = 0;
  uint64_t count = 0;  // accesses of each CPU
  Bdf functions[32] = {};
  unsigned function_count = 0;
  Range regions[8] = {};
  unsigned region_count = 0;
};
constinit Wild wild;

Mine& Me() {
  return wild.mine[ThisCpu().index];
}
uint64_t Next() {
  return Me().random.Next();
}
uint64_t Below(uint64_t bound) {
  return Me().random.Below(bound);
}
bool Toss() {
  return Below(2) != 0;
}

// --- Ports

bool EndsTheVm(uint16_t port, unsigned width) {
  const auto covers = [&](unsigned first, unsigned last) {
    return port <= last && port + width > first;
  };
  if (port == 0xcf8 && width == 4) return false;  // the address register, not the reset register
  return covers(0xf4, 0xf7) || covers(0x64, 0x64) || covers(0x92, 0x92) || covers(0xcf9, 0xcf9) ||
         covers(platform.debug_exit_port, platform.debug_exit_port + 3u) ||
         covers(platform.reset_port, platform.reset_port);
}

void PortAccess(uint16_t port, unsigned width, bool write, uint32_t value) {
  if (EndsTheVm(port, width) || port + width > 0x10000) return;
  // No SLP_EN, and what reaches the console is a full stop.
  if (port + width > platform.sleep_port && port < platform.sleep_port + 2) value &= 0xdfdfdfdf;
  if (port <= platform.serial_port && port + width > platform.serial_port) value = 0x2e2e2e2e;
  if (write) {
    if (width == 1) return Out8(port, static_cast<uint8_t>(value));
    if (width == 2) return Out16(port, static_cast<uint16_t>(value));
    return Out32(port, value);
  }
  if (width == 1) {
    Me().scratch[0] = In8(port);
  } else if (width == 2) {
    Me().scratch[0] = static_cast<uint8_t>(In16(port));
  } else {
    Me().scratch[0] = static_cast<uint8_t>(In32(port));
  }
}

unsigned PortWidth() {
  return 1u << Below(3);
}
uint32_t Value() {
  const auto value = static_cast<uint32_t>(Next() >> 16);
  return Below(4) == 0 ? (Toss() ? 0xffffffff : 0) : value;
}

void AnyPort() {
  PortAccess(static_cast<uint16_t>(Below(0x10000)), PortWidth(), Toss(), Value());
}

void KnownPort() {
  static constexpr uint16_t kPorts[] = {0x3f8, 0xcf8, 0xcfc, 0x600, 0x80, 0x3f0, 0x400,  0xcf0,
                                        0x20,  0x40,  0x70,  0xa0,  0xf0, 0x4d0, 0xfff8, 0x5fc};
  const uint64_t near = kPorts[Below(sizeof(kPorts) / sizeof(kPorts[0]))] + Below(9);
  PortAccess(static_cast<uint16_t>(near), PortWidth(), Toss(), Value());
}

void Uart() {
  PortAccess(static_cast<uint16_t>(platform.serial_port + Below(8)), PortWidth(), Toss(), Value());
}

void StringPorts() {
  const auto port = static_cast<uint16_t>(Toss() ? Below(0x10000) : 0xcf0 + Below(16));
  const unsigned width = PortWidth();
  if (EndsTheVm(port, width) || port + width > 0x10000) return;
  if (port + width > platform.sleep_port && port < platform.sleep_port + 2) return;
  if (port <= platform.serial_port && port + width > platform.serial_port) return;
  if (port == 0xcf8) return;
  uint64_t count = Below(17);
  void* memory = Me().scratch;
  const bool write = Toss();
  if (Below(4) == 0) memory = Me().scratch + 1;
  if (write) {
    if (width == 1) asm volatile("rep outsb" : "+S"(memory), "+c"(count) : "d"(port) : "memory");
    if (width == 2) asm volatile("rep outsw" : "+S"(memory), "+c"(count) : "d"(port) : "memory");
    if (width == 4) asm volatile("rep outsl" : "+S"(memory), "+c"(count) : "d"(port) : "memory");
  } else {
    if (width == 1) asm volatile("rep insb" : "+D"(memory), "+c"(count) : "d"(port) : "memory");
    if (width == 2) asm volatile("rep insw" : "+D"(memory), "+c"(count) : "d"(port) : "memory");
    if (width == 4) asm volatile("rep insl" : "+D"(memory), "+c"(count) : "d"(port) : "memory");
  }
}

// --- Memory

bool IsApic(uint64_t address, uint64_t size) {
  const Range range{address, size};
  return range.Overlaps({0xfec00000, 0x1000}) || range.Overlaps({0xfee00000, 0x100000});
}

void MmioAccess(uint64_t address, unsigned width, bool write, uint64_t value) {
  if (IsApic(address, width)) return;
  switch (width) {
    case 1:
      return write ? Write(address, static_cast<uint8_t>(value)) : void(Read<uint8_t>(address));
    case 2:
      return write ? Write(address, static_cast<uint16_t>(value)) : void(Read<uint16_t>(address));
    case 4:
      return write ? Write(address, static_cast<uint32_t>(value)) : void(Read<uint32_t>(address));
    default:
      return write ? Write(address, value) : void(Read<uint64_t>(address));
  }
}

uint64_t AnyMmio() {
  const Range& region = wild.regions[Below(wild.region_count)];
  uint64_t address = region.start + Below(region.size - 256);
  if (Below(4) == 0) address = region.start + Below(0x2000);
  if (Toss()) address &= ~uint64_t{7};
  if (Below(8) == 0) address = (address | 0xfff) - Below(8);  // across a page's end
  return address;
}

void Mmio() {
  MmioAccess(AnyMmio(), 1u << Below(4), Toss(), Next());
}

void MmioInstructions() {
  const uint64_t address = AnyMmio();
  if (IsApic(address, 128)) return;
  auto* memory = reinterpret_cast<uint64_t*>(address & ~uint64_t{7});
  void* device = memory;
  void* ram = Me().scratch;
  uint64_t count = Below(33);
  uint64_t value = Next();
  switch (Below(6)) {
    case 0:
      asm volatile("rep movsb" : "+D"(ram), "+S"(device), "+c"(count)::"memory");
      break;
    case 1:
      asm volatile("rep movsb" : "+D"(device), "+S"(ram), "+c"(count)::"memory");
      break;
    case 2:
      count /= 4;
      asm volatile("rep stosq" : "+D"(device), "+c"(count) : "a"(value) : "memory");
      break;
    case 3:
      asm volatile("lock addq %1, %0" : "+m"(*memory) : "r"(value) : "memory");
      break;
    case 4:
      asm volatile("xchgq %0, %1" : "+r"(value), "+m"(*memory)::"memory");
      break;
    default:
      asm volatile("lock cmpxchgq %2, %1" : "+a"(value), "+m"(*memory) : "r"(count) : "memory");
  }
}

// Across the end of a bank: half RAM, half not.
void BankEdge() {
  const Range& bank = platform.ram[Below(platform.ram_count)];
  const unsigned width = 2u << Below(3);
  const uint64_t address = bank.end() - 1 - Below(width - 1);
  if (InUse({address, width}) || bank.end() > 0xc0000000) return;
  MmioAccess(address, width, Toss(), Next());
}

// --- Configuration space

Bdf AnyFunction() {
  if (wild.function_count > 0 && Below(4) != 0) return wild.functions[Below(wild.function_count)];
  return {static_cast<uint8_t>(Below(256)), static_cast<uint8_t>(Below(32)),
          static_cast<uint8_t>(Below(8))};
}

unsigned AnyOffset(unsigned limit) {
  static constexpr uint8_t kInteresting[] = {0x04, 0x06, 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20,
                                             0x24, 0x30, 0x34, 0x3c, 0x3e, 0x40, 0x44, 0x50};
  if (Toss()) return kInteresting[Below(sizeof(kInteresting))] + static_cast<unsigned>(Below(4));
  return static_cast<unsigned>(Below(limit));
}

void ConfigByPorts() {
  const Bdf bdf = AnyFunction();
  const unsigned offset = AnyOffset(256);
  uint32_t address = 1u << 31 | static_cast<uint32_t>(bdf.bus) << 16 |
                     static_cast<uint32_t>(bdf.device << 11 | bdf.function << 8) | (offset & 0xfc);
  if (Below(8) == 0) address = Value();
  Out32(0xcf8, address);
  // The data port in every width, also running over its end.
  PortAccess(static_cast<uint16_t>(0xcfc + (offset & 3)), PortWidth(), Toss(), Value());
}

void ConfigByEcam() {
  if (!HasEcam()) return;
  const Bdf bdf = AnyFunction();
  uint64_t address = platform.ecam.start;
  address += static_cast<uint64_t>(bdf.bus) << 20 | static_cast<uint64_t>(bdf.device) << 15 |
             static_cast<uint64_t>(bdf.function) << 12 | AnyOffset(4096);
  if (Below(16) == 0) address = platform.ecam.start + Below(platform.ecam.size);
  if (!platform.ecam.Contains(address + 8)) return;
  MmioAccess(address, 1u << Below(4), Toss(), Next());
}

using Kind = void (*)();
constexpr Kind kKinds[] = {
    AnyPort,          KnownPort, Uart,          StringPorts,  Mmio,
    MmioInstructions, BankEdge,  ConfigByPorts, ConfigByEcam,
};
constexpr uint64_t kAllKinds = (1 << sizeof(kKinds) / sizeof(kKinds[0])) - 1;

uint64_t RunBatch(void* argument) {
  for (uint64_t n = *static_cast<uint64_t*>(argument); n > 0; --n) {
    uint64_t kind;
    do {
      kind = Below(sizeof(kKinds) / sizeof(kKinds[0]));
    } while (!(wild.kinds >> kind & 1));
    kKinds[kind]();
    ++Me().accesses;
  }
  return 0;
}

void RunAll(void*) {
  constexpr uint64_t kBatch = 64;
  for (uint64_t done = 0; done < wild.count; done += kBatch) {
    uint64_t n = wild.count - done < kBatch ? wild.count - done : kBatch;
    if (done / kBatch % 2 == 0) {
      RunBatch(&n);
    } else {
      RunInRing3(RunBatch, &n, Ring3Ports::kAll);
    }
  }
}

// --- Set-up and proof

void AddRegion(Range region) {
  if (region.size < 0x10000) return;
  if (region.start >= 4 * k1GiB) Map(region, Caching::kUncached);
  wild.regions[wild.region_count++] = region;
}

void FindTargets() {
  ForEachFunction([](const PciFunction& f) {
    if (wild.function_count < 32) wild.functions[wild.function_count++] = f.bdf;
  });
  uint64_t top = 4 * k1GiB;
  for (unsigned i = 0; i < platform.ram_count; ++i) {
    const uint64_t end = platform.ram[i].end();
    if (end > top) top = end;
    // Right after a bank, where the hole has not begun: nothing.
    if (end < 0xc0000000 - 0x200000) AddRegion({end, 0x200000});
  }
  AddRegion({0xc0000000, 0x3fff0000});
  AddRegion(platform.mmio_window);
  AddRegion({top, k1GiB});
  Range window = platform.mmio64_window;
  if (window.size > 4 * k1GiB) window.size = 4 * k1GiB;
  AddRegion(window);
}

uint64_t SumOf(void* argument) {
  const auto& range = *static_cast<const Range*>(argument);
  uint64_t sum = 0;
  for (uint64_t a = range.start; a < range.end(); a += 8)
    sum = (sum ^ Read<uint64_t>(a)) * 0x100000001b3;
  return sum;
}

}  // namespace

// The part of the image that never changes ends where .data begins.
extern "C" uint8_t image_constant_end[];

void GuestMain() {
  const uint64_t seed = CommandLineNumber("seed", 1);
  wild.count = CommandLineNumber("count", 4000);
  wild.kinds = CommandLineNumber("kinds", kAllKinds) & kAllKinds;
  if (wild.kinds == 0) wild.kinds = kAllKinds;
  const unsigned cpus = StartCpus();
  for (unsigned i = 0; i < cpus; ++i) wild.mine[i].random = Random(seed + (uint64_t{i} << 32));
  FindTargets();
  Print("wild: seed %lu, %u CPUs, %lu accesses each, %u functions, %u regions\n", seed, cpus,
        wild.count, wild.function_count, wild.region_count);

  auto* page = static_cast<uint8_t*>(AllocatePages(1));
  memset(page, 0x5a, kPageSize);
  const auto start = reinterpret_cast<uint64_t>(image_start);
  Range image{start, reinterpret_cast<uint64_t>(image_constant_end) - start};
  Range canary{reinterpret_cast<uint64_t>(page), kPageSize};
  const uint64_t image_before = RunInRing3(SumOf, &image);
  const uint64_t canary_before = RunInRing3(SumOf, &canary);

  RunOnAll(RunAll, nullptr);
  uint64_t accesses = 0;
  for (unsigned i = 0; i < cpus; ++i) accesses += wild.mine[i].accesses;

  SerialStart();
  Out32(0xcf8, 0);
  Print("\n");
  CHECK(1, RunInRing3(SumOf, &image) == image_before);
  CHECK(2, RunInRing3(SumOf, &canary) == canary_before);
  UartWrite(uart::kScratch, 0xa5);
  CHECK(3, UartRead(uart::kScratch) == 0xa5);
  Print("alive after %lu accesses\n", accesses);
}

}  // namespace guest
