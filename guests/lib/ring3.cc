#include "lib/ring3.h"

#include <stddef.h>

#include "lib/check.h"
#include "lib/cpu.h"
#include "lib/io.h"

extern "C" uint64_t Ring3Enter(guest::Ring3Function function, void* argument, uint64_t* tss_rsp0,
                               uint64_t stack, uint64_t rflags);

namespace guest {

uint64_t RunInRing3(Ring3Function function, void* argument, Ring3Ports ports) {
  Cpu& cpu = ThisCpu();
  CHECK(kCheckLibrary, InRing0() && !cpu.in_ring3, "RunInRing3 inside RunInRing3");
  cpu.in_ring3 = true;
  cpu.tss.io_map_base = ports == Ring3Ports::kAll ? offsetof(Tss, io_map) : 0xffff;
  const uint64_t rflags = (ReadFlags() & kFlagsInterrupt) | 2;
  // Through the integer, because the TSS is packed; the field is aligned (lib/cpu.h).
  auto* rsp0 =
      reinterpret_cast<uint64_t*>(reinterpret_cast<uint64_t>(&cpu.tss) + offsetof(Tss, rsp));
  const uint64_t result = Ring3Enter(function, argument, rsp0, cpu.ring3_stack, rflags);
  cpu.in_ring3 = false;
  return result;
}

uint64_t RunInRing3IfFree(Ring3Function function, void* argument) {
  if (!InRing0() || ThisCpu().in_ring3) return function(argument);
  return RunInRing3(function, argument);
}

}  // namespace guest
