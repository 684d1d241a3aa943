// smp: every CPU that the device tree names starts and works, in ring 0 and in ring 3, at the same
// time as the others. Without a tree: cpus=N on the command line.
//
// Check numbers:
//   1  as many CPUs came up as are described
//   2  a CPU's APIC id is the one it was started by, as CPUID and the LAPIC see it
//   3  no two CPUs have the same APIC id
//   4  the tree's CPUs are the CPUs that run
//   5  no increment of the shared counter was lost, ring 0
//   6  the same in ring 3
//   7  CPUID leaf 0xb, where there is one: level 0 is SMT, level 1 is core and holds every CPU, and
//      both give this CPU's APIC id
//   8  the MTRRs are on, where CPUID has them: off, RAM is uncached and Linux leaves PAT alone

#include "lib/smp.h"

#include <stdint.h>

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/cpu.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/platform.h"
#include "lib/print.h"
#include "lib/ring3.h"

namespace guest {
namespace {

constexpr uint64_t kRing0Bumps = 200;
constexpr uint64_t kAllRing3Bumps = 4'000'000;  // they share one cache line

struct Shared {
  uint64_t ring0 = 0;
  uint64_t ring3 = 0;
  unsigned arrived = 0;
  uint32_t cpuid_ids[MAX_CPUS] = {};
  uint32_t lapic_ids[MAX_CPUS] = {};
};
constinit Shared shared;

uint64_t Ring3Bumps() {
  return kAllRing3Bumps / CpuCount();
}

uint64_t BumpInRing3(void*) {
  const uint64_t bumps = Ring3Bumps();
  for (uint64_t i = 0; i < bumps; ++i) __atomic_fetch_add(&shared.ring3, 1, __ATOMIC_RELAXED);
  return ThisCpu().index;
}

void CheckTopology(uint32_t apic_id) {
  constexpr uint32_t kLeaf = 0xb;
  if (Cpuid(0).eax < kLeaf) return;
  const CpuidResult smt = Cpuid(kLeaf, 0);
  const CpuidResult core = Cpuid(kLeaf, 1);
  CHECK(7, smt.ecx == 0x100 && core.ecx == 0x201, "levels 0x%x 0x%x", smt.ecx, core.ecx);
  CHECK(7, smt.edx == apic_id && core.edx == apic_id, "APIC id %u %u", smt.edx, core.edx);
  // Without a tree it is another VMM, which may have several packages.
  CHECK(7, !platform.from_fdt || (core.ebx == CpuCount() && apic_id >> core.eax == 0),
        "%u CPUs, shift %u", core.ebx, core.eax);
}

void CheckMemoryTypes() {
  constexpr uint32_t kCpuidMtrr = 1 << 12;
  constexpr uint32_t kMtrrDefType = 0x2ff;
  constexpr uint64_t kEnabled = 1 << 11;
  if (!(Cpuid(1).edx & kCpuidMtrr)) return;
  CHECK(8, ReadMsr(kMtrrDefType) & kEnabled, "0x%lx", ReadMsr(kMtrrDefType));
}

void Work(void*) {
  const unsigned me = ThisCpu().index;
  shared.cpuid_ids[me] = Cpuid(1).ebx >> 24;
  shared.lapic_ids[me] = LocalApicId();
  CheckTopology(shared.lapic_ids[me]);
  CheckMemoryTypes();
  // All arrive before any starts, so that they really run together.
  __atomic_fetch_add(&shared.arrived, 1, __ATOMIC_ACQ_REL);
  while (__atomic_load_n(&shared.arrived, __ATOMIC_ACQUIRE) < CpuCount()) Pause();
  for (uint64_t i = 0; i < kRing0Bumps; ++i) __atomic_fetch_add(&shared.ring0, 1, __ATOMIC_RELAXED);
  CHECK(6, RunInRing3(BumpInRing3, nullptr) == me, "ring 3 ran with another CPU's stack");
}

bool IsDescribed(uint32_t apic_id) {
  for (unsigned i = 0; i < platform.cpu_count; ++i) {
    if (platform.cpu_ids[i] == apic_id) return true;
  }
  return false;
}

}  // namespace

void GuestMain() {
  Print("%u CPUs described\n", platform.cpu_count);
  const unsigned count = StartCpus();
  CHECK(1, count == platform.cpu_count, "%u of %u", count, platform.cpu_count);
  RunOnAll(Work, nullptr);
  for (unsigned i = 0; i < count; ++i) {
    const uint32_t id = CpuAt(i).apic_id;
    Print("  CPU %u: APIC id %u\n", i, id);
    CHECK(2, shared.cpuid_ids[i] == id && shared.lapic_ids[i] == id, "CPUID says %u, LAPIC %u",
          shared.cpuid_ids[i], shared.lapic_ids[i]);
    for (unsigned j = 0; j < i; ++j) CHECK(3, CpuAt(j).apic_id != id, "CPUs %u and %u", i, j);
    CHECK(4, IsDescribed(id));
  }
  CHECK(5, shared.ring0 == count * kRing0Bumps, "%lu", shared.ring0);
  CHECK(6, shared.ring3 == count * Ring3Bumps(), "%lu", shared.ring3);
  Print("%lu increments in ring 0 and %lu in ring 3, none lost\n", shared.ring0, shared.ring3);
}

}  // namespace guest
