// reboot: resets the machine through port 0xcf9 reboots=N times (default 2) and checks in each boot
// that it starts from power-on. RAM survives a reset, so a page that no image occupies carries the
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
#include "lib/serial.h"
#include "lib/smp.h"

namespace guest {
namespace {

constexpr uint64_t kLoaded = 0x6c6f61646564;
constinit volatile uint64_t in_data = kLoaded;
constinit volatile uint64_t in_bss = 0;

struct Survivor {
  static constexpr uint64_t kMagic = 0x7375727669766f72;
  uint64_t magic;
  uint64_t boots;  // before this one
  UartState uart;  // in the first boot
  uint32_t cf8;    // in the first boot
};

// Leaves traces that a reset must wipe out.
void Disturb() {
  in_data = 1;
  in_bss = 1;
  Out32(0xcf8, 0x80001234);
  UartWrite(uart::kInterruptEnable, 0x05);
  UartWrite(uart::kLineControl, 0x1a);
  UartWrite(uart::kModemControl, 0x0e);
  StartTimer(0x40, kTimerHz, /*periodic=*/true);
}

}  // namespace

void GuestMain() {
  const uint64_t reboots = CommandLineNumber("reboots", 2);
  const uint32_t cf8 = In32(0xcf8);
  auto& survivor = *reinterpret_cast<Survivor*>(FreeRamStart());
  if (survivor.magic != Survivor::kMagic) {
    survivor = {Survivor::kMagic, 0, uart_at_start, cf8};
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

  if (survivor.boots == reboots) {
    survivor.magic = 0;
    Print("%lu reboots, power-on state each time\n", reboots);
    return;
  }
  ++survivor.boots;
  Disturb();
  Reset();
}

}  // namespace guest
