#include "lib/trap.h"

#include "lib/check.h"
#include "lib/cpu.h"
#include "lib/power.h"
#include "lib/print.h"

namespace guest {
namespace {

constinit TrapHandler handlers[256] = {};

uint64_t ReadCr2() {
  uint64_t value;
  asm volatile("movq %%cr2, %0" : "=r"(value));
  return value;
}

const char* Name(uint64_t vector) {
  switch (vector) {
    case vector::kDivide:
      return "#DE divide error";
    case vector::kBreakpoint:
      return "#BP breakpoint";
    case vector::kInvalidOpcode:
      return "#UD invalid opcode";
    case vector::kDoubleFault:
      return "#DF double fault";
    case vector::kGeneralProtection:
      return "#GP general protection";
    case vector::kPageFault:
      return "#PF page fault";
    default:
      return vector < 32 ? "exception" : "interrupt without a handler";
  }
}

[[noreturn]] void Report(const TrapFrame& f) {
  Print("\nCPU %u: %s, vector %lu, error code 0x%lx, ring %lu\n", ThisCpu().index, Name(f.vector),
        f.vector, f.error_code, f.cs & 3);
  Print("  RIP 0x%lx RSP 0x%lx RFLAGS 0x%lx CR2 0x%lx\n", f.rip, f.rsp, f.rflags, ReadCr2());
  Print("  RAX 0x%lx RBX 0x%lx RCX 0x%lx RDX 0x%lx RSI 0x%lx RDI 0x%lx\n", f.rax, f.rbx, f.rcx,
        f.rdx, f.rsi, f.rdi);
  DebugExit(kCheckException);
}

}  // namespace

void SetTrapHandler(uint8_t vector, TrapHandler handler) {
  __atomic_store_n(&handlers[vector], handler, __ATOMIC_RELEASE);
}

extern "C" void HandleTrap(TrapFrame* frame) {
  const TrapHandler handler = __atomic_load_n(&handlers[frame->vector & 0xff], __ATOMIC_ACQUIRE);
  if (handler != nullptr) {
    handler(*frame);
  } else if (frame->vector != vector::kSpurious) {
    Report(*frame);
  }
}

}  // namespace guest
