// The 16550 UART: polled output, input by polling or by interrupt.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace guest {

namespace uart {  // registers, and the bits that guests use
inline constexpr uint16_t kData = 0, kInterruptEnable = 1, kInterruptId = 2, kFifoControl = 2,
                          kLineControl = 3, kModemControl = 4, kLineStatus = 5, kModemStatus = 6,
                          kScratch = 7;
inline constexpr uint8_t kIerReceive = 1 << 0, kIerTransmit = 1 << 1;
inline constexpr uint8_t kIirNone = 1, kIirTransmit = 2, kIirReceive = 4, kIirTimeout = 12,
                         kIirMask = 15;
inline constexpr uint8_t kLsrReady = 1 << 0, kLsrTransmitEmpty = 1 << 5;
inline constexpr uint8_t kMcrOut2 = 1 << 3;  // lets the interrupt out, on a PC
}  // namespace uart

uint8_t UartRead(uint16_t reg);
void UartWrite(uint16_t reg, uint8_t value);

// What the boot found, before SerialStart changed it.
struct UartState {
  uint8_t interrupt_enable, line_control, modem_control;
};
extern UartState uart_at_start;

// 8N1, FIFOs on, interrupts off.
void SerialStart();

// Writes all, as it is. Gives up on a UART that never gets ready.
void SerialWrite(const char* text, size_t size);

// The next byte received, or -1.
int SerialRead();

// Takes what comes up to the end of a line, and waits for that.
void SerialSkipLine();

}  // namespace guest
