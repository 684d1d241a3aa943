// irq: interrupts arrive, where they should and how often they should.
//
// Check numbers:
//   1  LAPIC timer, one shot: exactly one interrupt, also out of HLT
//   2  LAPIC timer, periodic: ten interrupts
//   3  an interrupt arrives while ring 3 runs, which then goes on
//   4  self IPI
//   5  IPIs to every other CPU and back (where there are others)
//   6  UART transmit interrupt through I/O APIC pin 4
//   7  IIR names that cause, and reading it takes the cause away
//   8  a masked I/O APIC pin delivers nothing
//   9  the I/O APIC has a pin for the UART
//   10 with interrupts off nothing arrives; what was pending then does

#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/cpu.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/platform.h"
#include "lib/print.h"
#include "lib/ring3.h"
#include "lib/serial.h"
#include "lib/smp.h"
#include "lib/time.h"
#include "lib/trap.h"

namespace guest {
namespace {

constexpr uint8_t kTimerVector = 0x40;
constexpr uint8_t kIpiVector = 0x41;
constexpr uint8_t kReplyVector = 0x42;
constexpr uint8_t kSerialVector = 0x43;

constexpr uint64_t kPatience = 5'000'000;  // microseconds
constexpr uint64_t kQuiet = 20'000;        // how long nothing must come

constinit unsigned counts[256] = {};
constinit unsigned from_ring3 = 0;
constinit uint8_t last_cause = 0;
constinit uint32_t boot_apic_id = 0;

unsigned Count(uint8_t vector) {
  return __atomic_load_n(&counts[vector], __ATOMIC_ACQUIRE);
}

void OnInterrupt(TrapFrame& frame) {
  if (frame.FromRing3()) ++from_ring3;
  __atomic_fetch_add(&counts[frame.vector], 1, __ATOMIC_ACQ_REL);
  LocalApicEnd();
}

void OnSerial(TrapFrame& frame) {
  last_cause = UartRead(uart::kInterruptId) & uart::kIirMask;
  OnInterrupt(frame);
}

// On another CPU: answers the boot CPU.
void OnIpi(TrapFrame& frame) {
  OnInterrupt(frame);
  SendIpi(boot_apic_id, kReplyVector);
}

// Until the vector has come `count` times or patience ends.
bool WaitForCount(uint8_t vector, unsigned count) {
  AwaitInterrupts(kPatience, [&] { return Count(vector) >= count; });
  return Count(vector) == count;
}

void StayQuiet() {
  AwaitInterrupts(kQuiet, [] { return false; });
}

void TestTimer() {
  SetTrapHandler(kTimerVector, OnInterrupt);
  StartTimer(kTimerVector, kTimerHz / 1000);
  WaitForInterrupt();
  StayQuiet();
  CHECK(1, Count(kTimerVector) == 1, "%u interrupts", Count(kTimerVector));

  counts[kTimerVector] = 0;
  StartTimer(kTimerVector, kTimerHz / 1000, /*periodic=*/true);
  while (Count(kTimerVector) < 10) WaitForInterrupt();
  StopTimer();
  CHECK(2, Count(kTimerVector) >= 10);
  Print("  timer: one shot, periodic\n");
}

uint64_t SpinUntilTimer(void*) {
  uint64_t turns = 0;
  while (Count(kTimerVector) == 0 && turns < 20'000'000'000) ++turns;
  return turns;
}

// On a busy host the time may pass before ring 3 is reached, so it grows.
void TestRing3() {
  uint64_t turns = 0;
  for (uint32_t ticks = kTimerHz / 100; ticks < kTimerHz * 3; ticks *= 4) {
    counts[kTimerVector] = 0;
    from_ring3 = 0;
    StartTimer(kTimerVector, ticks);
    EnableInterrupts();
    turns = RunInRing3(SpinUntilTimer, nullptr);
    DisableInterrupts();
    CHECK(3, Count(kTimerVector) == 1, "%u interrupts", Count(kTimerVector));
    if (from_ring3 == 1) break;
  }
  CHECK(3, from_ring3 == 1, "%u from ring 3", from_ring3);
  Print("  ring 3 interrupted after %lu turns\n", turns);
}

void TestDisabled() {
  counts[kTimerVector] = 0;
  StartTimer(kTimerVector, kTimerHz / 1000);
  Delay(kQuiet);
  CHECK(10, Count(kTimerVector) == 0, "came with interrupts off");
  CHECK(10, WaitForCount(kTimerVector, 1), "the pending one was lost");
}

void TestIpis() {
  SetTrapHandler(kReplyVector, OnInterrupt);
  SendSelfIpi(kReplyVector);
  CHECK(4, WaitForCount(kReplyVector, 1), "%u", Count(kReplyVector));

  boot_apic_id = ThisCpu().apic_id;
  SetTrapHandler(kIpiVector, OnIpi);
  const unsigned cpus = StartCpus();
  for (unsigned i = 1; i < cpus; ++i) {
    counts[kIpiVector] = counts[kReplyVector] = 0;
    SendIpi(CpuAt(i).apic_id, kIpiVector);
    CHECK(5, WaitForCount(kReplyVector, 1) && Count(kIpiVector) == 1, "CPU %u", i);
  }
  Print("  IPIs: self, and there and back with %u other CPUs\n", cpus - 1);
}

void TestSerial() {
  CHECK(9, platform.serial_gsi < IoApicPins(), "%u pins", IoApicPins());
  SetTrapHandler(kSerialVector, OnSerial);
  UartWrite(uart::kModemControl, 0x03 | uart::kMcrOut2);
  RouteIoApicPin(platform.serial_gsi, kSerialVector, ThisCpu().apic_id, Trigger::kEdge);
  // The transmitter is idle, so allowing its interrupt raises it.
  UartWrite(uart::kInterruptEnable, uart::kIerTransmit);
  CHECK(6, WaitForCount(kSerialVector, 1), "%u interrupts", Count(kSerialVector));
  CHECK(7, last_cause == uart::kIirTransmit, "IIR 0x%x", last_cause);
  const uint8_t cause = UartRead(uart::kInterruptId) & uart::kIirMask;
  CHECK(7, cause == uart::kIirNone, "IIR 0x%x after it was read", cause);

  UartWrite(uart::kInterruptEnable, 0);
  MaskIoApicPin(platform.serial_gsi);
  counts[kSerialVector] = 0;
  UartWrite(uart::kInterruptEnable, uart::kIerTransmit);
  StayQuiet();
  CHECK(8, Count(kSerialVector) == 0, "%u interrupts", Count(kSerialVector));
  UartWrite(uart::kInterruptEnable, 0);
  Print("  UART: transmit interrupt on GSI %u, none while masked\n", platform.serial_gsi);
}

}  // namespace

void GuestMain() {
  Print("Interrupts:\n");
  TestTimer();
  TestRing3();
  TestDisabled();
  TestIpis();
  TestSerial();
}

}  // namespace guest
