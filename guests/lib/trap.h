// Traps: exceptions and interrupts. What has no handler is reported on the serial port and ends the
// VM with kCheckException.
#pragma once

#include <stdint.h>

namespace guest {

struct TrapFrame {
  uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
  uint64_t vector;
  uint64_t error_code;  // 0 where the CPU gives none
  uint64_t rip, cs, rflags, rsp, ss;

  bool FromRing3() const { return (cs & 3) == 3; }
};

// Called with interrupts off, on the ring-0 stack of the CPU that took the trap. A handler of a
// LAPIC interrupt ends it itself (LocalApicEnd).
using TrapHandler = void (*)(TrapFrame& frame);

// For all CPUs; null takes the handler away.
void SetTrapHandler(uint8_t vector, TrapHandler handler);

namespace vector {
inline constexpr uint8_t kDivide = 0, kBreakpoint = 3, kInvalidOpcode = 6, kDoubleFault = 8,
                         kGeneralProtection = 13, kPageFault = 14;
inline constexpr uint8_t kFirstFree = 32;
inline constexpr uint8_t kSpurious = 0xff;
}  // namespace vector

}  // namespace guest
