// echo: a prompt on the serial port. Input arrives by interrupt (GSI 4, edge), the CPU halts
// between.
//
//   quit      the debug-exit port, value 0
//   poweroff  ACPI power off
//   reboot    reset through port 0xcf9
//   anything else is answered with "you said: LINE"
//
// Check numbers:
//   1  a receive interrupt came with a byte to read, or with another cause the UART names
//   2  a line was not longer than the buffer (256)

#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/cpu.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/platform.h"
#include "lib/power.h"
#include "lib/print.h"
#include "lib/serial.h"
#include "lib/string.h"
#include "lib/trap.h"

namespace guest {
namespace {

constexpr uint8_t kSerialVector = 0x24;

// Filled by the interrupt handler, emptied by GuestMain, which turns interrupts off to look.
struct Queue {
  static constexpr unsigned kSize = 1024;
  uint8_t bytes[kSize];
  unsigned head, tail;
};
constinit Queue queue = {};

void OnSerial(TrapFrame&) {
  // Edge-triggered: the line must fall, so drain until the UART has nothing more to say.
  for (int i = 0; i < 10000; ++i) {
    if (queue.head - queue.tail == Queue::kSize) {
      UartWrite(uart::kInterruptEnable, 0);  // the rest waits in the UART until NextByte has room
      break;
    }
    const uint8_t cause = UartRead(uart::kInterruptId) & uart::kIirMask;
    if (cause & uart::kIirNone) break;
    if (cause == uart::kIirReceive || cause == uart::kIirTimeout) {
      const int byte = SerialRead();
      CHECK(1, byte >= 0, "IIR cause %u without a byte", cause);
      queue.bytes[queue.head++ % Queue::kSize] = static_cast<uint8_t>(byte);
    } else {
      UartRead(uart::kLineStatus);
      UartRead(uart::kModemStatus);
    }
  }
  LocalApicEnd();
}

uint8_t NextByte() {
  while (queue.head == queue.tail) {
    UartWrite(uart::kInterruptEnable, uart::kIerReceive);
    WaitForInterrupt();
  }
  return queue.bytes[queue.tail++ % Queue::kSize];
}

void ReadLine(char* line, unsigned size) {
  unsigned length = 0;
  for (;;) {
    const uint8_t byte = NextByte();
    if (byte == '\r' || byte == '\n') break;
    CHECK(2, length + 1 < size);
    line[length++] = static_cast<char>(byte);
    SerialWrite(line + length - 1, 1);
  }
  line[length] = 0;
  Print("\n");
}

}  // namespace

void GuestMain() {
  SetTrapHandler(kSerialVector, OnSerial);
  RouteIoApicPin(platform.serial_gsi, kSerialVector, ThisCpu().apic_id, Trigger::kEdge);
  UartWrite(uart::kModemControl, 0x03 | uart::kMcrOut2);
  UartWrite(uart::kInterruptEnable, uart::kIerReceive);
  Print("Echo. Lines end with Enter; quit, poweroff and reboot do what they say.\n");
  for (;;) {
    char line[256];
    Print("> ");
    ReadLine(line, sizeof(line));
    if (Equal(line, "quit")) return;
    if (Equal(line, "poweroff")) PowerOff();
    if (Equal(line, "reboot")) Reset();
    Print("you said: %s\n", line);
  }
}

}  // namespace guest
