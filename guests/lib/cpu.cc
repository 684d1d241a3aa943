#include "lib/cpu.h"

#include <stddef.h>

#include "lib/string.h"

extern "C" uint64_t boot_gdt[7];
extern "C" uint8_t idt_pointer[10];

namespace guest {
namespace {

struct [[gnu::packed]] TablePointer {
  uint16_t limit;
  uint64_t base;
};

constexpr uint16_t kNoIoMap = 0xffff;

static_assert((offsetof(Cpu, tss) + offsetof(Tss, rsp)) % 8 == 0);

}  // namespace

void PrepareCpu(Cpu* cpu, unsigned index, uint32_t apic_id, uint64_t stack_end) {
  cpu->index = index;
  cpu->apic_id = apic_id;
  cpu->ring3_stack = stack_end - CPU_STACK_SIZE / 2;
  memcpy(cpu->gdt, boot_gdt, sizeof(boot_gdt));
  const auto base = reinterpret_cast<uint64_t>(&cpu->tss);
  const uint64_t limit = sizeof(Tss) - 1;
  constexpr uint64_t kAvailableTss = uint64_t{0x89} << 40;
  cpu->gdt[TSS_SELECTOR / 8] =
      limit | (base & 0xffffff) << 16 | kAvailableTss | (base >> 24 & 0xff) << 56;
  cpu->gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
  cpu->tss.rsp[0] = stack_end;
  cpu->tss.io_map_base = kNoIoMap;
  cpu->tss.io_map_end = 0xff;
  *reinterpret_cast<Cpu**>(stack_end - CPU_STACK_SIZE) = cpu;
}

void LoadDescriptorTables(Cpu* cpu) {
  const TablePointer gdt{sizeof(cpu->gdt) - 1, reinterpret_cast<uint64_t>(cpu->gdt)};
  asm volatile("lgdt %0" ::"m"(gdt) : "memory");
  asm volatile("ltr %w0" ::"r"(TSS_SELECTOR));
  asm volatile("lidt %0" ::"m"(idt_pointer) : "memory");
}

}  // namespace guest
