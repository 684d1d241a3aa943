// Cpu: one per CPU: its number, its APIC id, its descriptor tables and its stacks.
//
// Found through the stack pointer (lib/layout.h), in ring 0 as in ring 3, without any register set
// aside. Made by the boot CPU, changed only by its own.
#pragma once

#include <stdint.h>

#include "lib/layout.h"

namespace guest {

// AMD64 Architecture Programmer's Manual volume 2, 12.2.5. The I/O permission bitmap with all
// ports allowed follows; io_map_base says whether it is in force.
struct [[gnu::packed]] Tss {
  uint32_t reserved0;
  uint64_t rsp[3];
  uint64_t reserved1;
  uint64_t ist[7];
  uint64_t reserved2;
  uint16_t reserved3;
  uint16_t io_map_base;
  uint8_t io_map[8192];
  uint8_t io_map_end;
};

struct Cpu {
  unsigned index;  // 0 booted
  uint32_t apic_id;
  bool in_ring3;  // a ring-3 run is in progress
  uint64_t ring3_stack;
  uint64_t gdt[10];
  alignas(8) uint8_t padding[4];  // so that rsp[] of the TSS is aligned
  Tss tss;
};

// Fills `cpu` and ties it to the stack block that ends at `stack_end`.
void PrepareCpu(Cpu* cpu, unsigned index, uint32_t apic_id, uint64_t stack_end);

// Loads the descriptor tables of this CPU.
void LoadDescriptorTables(Cpu* cpu);

inline Cpu& ThisCpu() {
  uint64_t stack;
  asm volatile("movq %%rsp, %0" : "=r"(stack));
  return **reinterpret_cast<Cpu**>(stack & ~uint64_t{CPU_STACK_SIZE - 1});
}

inline bool InRing0() {
  uint16_t cs;
  asm volatile("movw %%cs, %0" : "=r"(cs));
  return (cs & 3) == 0;
}

}  // namespace guest
