#include "lib/smp.h"

#include "lib/apic.h"
#include "lib/check.h"
#include "lib/heap.h"
#include "lib/io.h"
#include "lib/platform.h"
#include "lib/string.h"
#include "lib/time.h"
#include "lib/trap.h"

extern "C" uint8_t trampoline[], trampoline_end[];
extern "C" volatile uint64_t started_stack;

namespace guest {
namespace {

constexpr uint8_t kWorkVector = 0xfd;  // wakes a halted CPU; the work itself is in memory

struct Worker {
  Cpu* cpu;
  CpuFunction function;  // not null: work to do
  void* argument;
  bool online;
};
constinit Worker workers[MAX_CPUS] = {};
constinit unsigned cpu_count = 1;

void OnWork(TrapFrame&) {
  LocalApicEnd();
}

// A page below 1 MiB that is free: everything there was copied out, but for modules.
uint64_t FindTrampolinePage() {
  for (uint64_t page = 0x8000; page < 0x90000; page += kPageSize) {
    if (!InUse({page, kPageSize})) return page;
  }
  CHECK(kCheckLibrary, false, "no page for the trampoline");
  return 0;
}

bool WaitUntilOnline(const Worker& worker) {
  const Deadline deadline(5'000'000);
  while (!__atomic_load_n(&worker.online, __ATOMIC_ACQUIRE)) {
    if (deadline.Passed()) return false;
    Pause();
  }
  return true;
}

// In real mode, at the start of a page below 1 MiB.
void Restart(uint32_t apic_id, uint64_t page) {
  SendInit(apic_id);
  Delay(200);
  SendStartup(apic_id, static_cast<uint8_t>(page / kPageSize));
}

bool StartOne(Worker& worker, unsigned index, uint32_t apic_id, uint64_t page) {
  const auto stack =
      reinterpret_cast<uint64_t>(AllocatePages(CPU_STACK_SIZE / kPageSize, CPU_STACK_SIZE));
  worker.cpu = static_cast<Cpu*>(AllocatePages((sizeof(Cpu) + kPageSize - 1) / kPageSize));
  PrepareCpu(worker.cpu, index, apic_id, stack + CPU_STACK_SIZE);
  started_stack = stack + CPU_STACK_SIZE;
  Restart(apic_id, page);
  return WaitUntilOnline(worker);
}

}  // namespace

// The first C++ of a started CPU, called from trampoline.S by way of boot.S.
extern "C" [[noreturn]] void StartOtherCpu() {
  Cpu& cpu = ThisCpu();
  LoadDescriptorTables(&cpu);
  LocalApicStart();
  Worker& me = workers[cpu.index];
  __atomic_store_n(&me.online, true, __ATOMIC_RELEASE);
  for (;;) {
    DisableInterrupts();
    if (const CpuFunction function = __atomic_load_n(&me.function, __ATOMIC_ACQUIRE)) {
      function(me.argument);
      DisableInterrupts();
      __atomic_store_n(&me.function, nullptr, __ATOMIC_RELEASE);
    } else {
      WaitForInterrupt();
    }
  }
}

unsigned StartCpus() {
  workers[0].cpu = &ThisCpu();
  SetTrapHandler(kWorkVector, OnWork);
  const uint64_t page = FindTrampolinePage();
  memcpy(reinterpret_cast<void*>(page), trampoline,
         static_cast<size_t>(trampoline_end - trampoline));
  for (unsigned i = 0; i < platform.cpu_count; ++i) {
    const uint32_t apic_id = platform.cpu_ids[i];
    if (apic_id == ThisCpu().apic_id) continue;
    if (StartOne(workers[cpu_count], cpu_count, apic_id, page)) ++cpu_count;
  }
  return cpu_count;
}

void ResetByVector(unsigned index) {
  constexpr uint8_t kLongJump[] = {0xea, 0xf0, 0xff, 0x00, 0xf0};  // ljmp $0xf000, $0xfff0
  const uint64_t page = FindTrampolinePage();
  memcpy(reinterpret_cast<void*>(page), kLongJump, sizeof(kLongJump));
  Restart(CpuAt(index).apic_id, page);
  Halt();
}

unsigned CpuCount() {
  return cpu_count;
}
Cpu& CpuAt(unsigned index) {
  return index == 0 ? ThisCpu() : *workers[index].cpu;
}

void RunOn(unsigned index, CpuFunction function, void* argument) {
  Worker& worker = workers[index];
  worker.argument = argument;
  __atomic_store_n(&worker.function, function, __ATOMIC_RELEASE);
  SendIpi(worker.cpu->apic_id, kWorkVector);
}

void WaitFor(unsigned index) {
  while (__atomic_load_n(&workers[index].function, __ATOMIC_ACQUIRE) != nullptr) Pause();
}

void RunOnAll(CpuFunction function, void* argument) {
  for (unsigned i = 1; i < cpu_count; ++i) RunOn(i, function, argument);
  function(argument);
  for (unsigned i = 1; i < cpu_count; ++i) WaitFor(i);
}

}  // namespace guest
