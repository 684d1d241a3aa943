// RunInRing3: runs a function at CPL 3 and returns its value.
//
// Why: where KVM is PVM, CPL 0 code is run by KVM's instruction emulator, at 1.7 million
// instructions a second and without SSE, while CPL 3 code runs on the CPU. Inner loops belong here.
//
// The function sees the same memory (all pages are user pages) and the same ThisCpu(). It must not
// use privileged instructions; ports only if asked for. Interrupts stay as they are and are taken.
// A trap handler may not call it while it interrupted a ring-3 run.
#pragma once

#include <stdint.h>

namespace guest {

using Ring3Function = uint64_t (*)(void* argument);

enum class Ring3Ports { kNone, kAll };  // by the TSS bitmap: PVM loses IOPL in IRET

uint64_t RunInRing3(Ring3Function function, void* argument, Ring3Ports ports = Ring3Ports::kNone);

// In ring 3 if this CPU can, else (already there, or in a trap from there) in place.
uint64_t RunInRing3IfFree(Ring3Function function, void* argument);

}  // namespace guest
