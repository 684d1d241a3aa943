#include "lib/serial.h"

#include "lib/io.h"
#include "lib/platform.h"

namespace guest {

uint8_t UartRead(uint16_t reg) {
  return In8(static_cast<uint16_t>(platform.serial_port + reg));
}

void UartWrite(uint16_t reg, uint8_t value) {
  Out8(static_cast<uint16_t>(platform.serial_port + reg), value);
}

constinit UartState uart_at_start = {};

void SerialStart() {
  uart_at_start = {UartRead(uart::kInterruptEnable), UartRead(uart::kLineControl),
                   UartRead(uart::kModemControl)};
  UartWrite(uart::kInterruptEnable, 0);
  UartWrite(uart::kLineControl, 0x03);
  UartWrite(uart::kFifoControl, 0x07);
  UartWrite(uart::kModemControl, 0x03);
}

void SerialWrite(const char* text, size_t size) {
  constexpr size_t kFifo = 16;
  while (size > 0) {
    for (int i = 0; i < 100000 && !(UartRead(uart::kLineStatus) & uart::kLsrTransmitEmpty); ++i) {
      Pause();
    }
    const size_t chunk = size < kFifo ? size : kFifo;
    OutString8(platform.serial_port, text, chunk);
    text += chunk;
    size -= chunk;
  }
}

int SerialRead() {
  if (!(UartRead(uart::kLineStatus) & uart::kLsrReady)) return -1;
  return UartRead(uart::kData);
}

void SerialSkipLine() {
  while (SerialRead() != '\n') Pause();
}

}  // namespace guest
