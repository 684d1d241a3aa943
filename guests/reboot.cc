// reboot: resets the machine reboots=N times (default 2) and checks in each boot that it starts from
// power-on: through port 0xcf9, and every second time, where there is another CPU, by that CPU's jump
// to the reset vector. RAM survives a reset, so a page that no image occupies carries the
// count; everything that is loaded must be loaded anew.
//
// Check numbers:
//   1  .data is as loaded
//   2  .bss is zero
//   3  UART: IER is 0
//   4  UART: LCR and MCR are what they were in the first boot
//   5  the address register of configuration mechanism 1 (0xcf8) is what it was in the first boot,
//      which is 0 where no firmware ran before (there is a device tree)
//   6  the count is in range: no boot too many, RAM survived
//   7  the LAPIC timer, left running before the reset, stands still
//   8  every CPU that is described starts; they ran when the machine was reset
//   9  the MTRRs are what they were in the first boot
//  10  the upper half of a YMM register is zero, where the CPU has AVX

#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/command_line.h"
#include "lib/guest.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/platform.h"
#include "lib/power.h"
#include "lib/print.h"
#include "lib/ring3.h"
#include "lib/serial.h"
#include "lib/smp.h"

namespace guest {
namespace {

constexpr uint64_t kLoaded = 0x6c6f61646564;
constinit volatile uint64_t in_data = kLoaded;
constinit volatile uint64_t in_bss = 0;

struct Msr {
  uint32_t index;
  uint64_t disturbed;
};
// The default type, one range with its mask (not valid, so of no effect), and one fixed range.
constexpr Msr kMtrrs[] = {
    {0x2ff, 0xc06}, {0x200, 0x8000'0006}, {0x201, 0xf'8000'0000}, {0x26f, 0x0606'0606'0606'0606}};
constexpr unsigned kMtrrCount = sizeof(kMtrrs) / sizeof(kMtrrs[0]);

struct Survivor {
  static constexpr uint64_t kMagic = 0x7375727669766f72;
  uint64_t magic;
  uint64_t boots;  // before this one
  UartState uart;  // in the first boot
  uint32_t cf8;    // in the first boot
  uint64_t mtrrs[kMtrrCount];
};

bool HasMtrrs() { return Cpuid(1).edx >> 12 & 1; }

uint64_t Mtrr(unsigned i) { return HasMtrrs() ? ReadMsr(kMtrrs[i].index) : 0; }

// Whether this CPU has AVX; it is usable then.
bool EnableAvx() {
  constexpr uint32_t kXsaveAndAvx = 1 << 26 | 1 << 28;
  constexpr uint64_t kCr4Osxsave = 1 << 18;
  constexpr uint64_t kX87SseAvx = 7;
  if ((Cpuid(1).ecx & kXsaveAndAvx) != kXsaveAndAvx) return false;
  WriteCr4(ReadCr4() | kCr4Osxsave);
  WriteXcr(0, kX87SseAvx);
  return true;
}

// In ring 3, as AVX in ring 0 needs more than every KVM can do (lib/ring3.h).
uint64_t UpperHalf(void*) {
  alignas(16) uint64_t half[2];
  asm volatile("vextractf128 $1, %%ymm5, %0" : "=m"(half));
  return half[0] | half[1];
}
uint64_t FillRegister(void*) {
  asm volatile("vcmpps $15, %ymm5, %ymm5, %ymm5");  // true: all ones
  return 0;
}

// Leaves traces that a reset must wipe out.
void Disturb() {
  in_data = 1;
  in_bss = 1;
  Out32(0xcf8, 0x80001234);
  UartWrite(uart::kInterruptEnable, 0x05);
  UartWrite(uart::kLineControl, 0x1a);
  UartWrite(uart::kModemControl, 0x0e);
  StartTimer(0x40, kTimerHz, /*periodic=*/true);
  if (EnableAvx()) RunInRing3(FillRegister, nullptr);
  for (const Msr& mtrr : kMtrrs) {
    if (HasMtrrs()) WriteMsr(mtrr.index, mtrr.disturbed);
  }
}

}  // namespace

void GuestMain() {
  const uint64_t reboots = CommandLineNumber("reboots", 2);
  const uint32_t cf8 = In32(0xcf8);
  auto& survivor = *reinterpret_cast<Survivor*>(FreeRamStart());
  if (survivor.magic != Survivor::kMagic) {
    survivor = {Survivor::kMagic, 0, uart_at_start, cf8, {}};
    for (unsigned i = 0; i < kMtrrCount; ++i) survivor.mtrrs[i] = Mtrr(i);
  }
  Print("boot %lu of %lu\n", survivor.boots + 1, reboots + 1);

  const UartState& now = uart_at_start;
  const UartState& first = survivor.uart;
  CHECK(1, in_data == kLoaded, "0x%lx", in_data);
  CHECK(2, in_bss == 0, "0x%lx", in_bss);
  CHECK(3, now.interrupt_enable == 0, "0x%x", now.interrupt_enable);
  CHECK(4, now.line_control == first.line_control && now.modem_control == first.modem_control,
        "LCR 0x%x MCR 0x%x, first 0x%x 0x%x", now.line_control, now.modem_control,
        first.line_control, first.modem_control);
  CHECK(5, cf8 == survivor.cf8 && (cf8 == 0 || !platform.from_fdt), "0x%x", cf8);
  CHECK(6, survivor.boots <= reboots, "%lu", survivor.boots);

  CHECK(7, TimerCount() == 0, "%u", TimerCount());
  const unsigned cpus = StartCpus();
  CHECK(8, cpus == platform.cpu_count, "%u of %u", cpus, platform.cpu_count);
  for (unsigned i = 0; i < kMtrrCount; ++i)
    CHECK(9, Mtrr(i) == survivor.mtrrs[i], "MSR 0x%x: 0x%lx", kMtrrs[i].index, Mtrr(i));
  if (EnableAvx()) CHECK(10, RunInRing3(UpperHalf, nullptr) == 0);

  if (survivor.boots == reboots) {
    survivor.magic = 0;
    Print("%lu reboots, power-on state each time\n", reboots);
    return;
  }
  ++survivor.boots;
  Disturb();
  if (cpus > 1 && survivor.boots % 2 == 0) ResetByVector(cpus - 1);
  Reset();
}

}  // namespace guest
