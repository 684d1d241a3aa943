// Numbers that assembly, C++ and link.ld share: selectors, control register bits, stacks, stubs.
#pragma once

#define KERNEL32_CS 0x08
#define KERNEL_CS 0x10
#define KERNEL_DS 0x18
#define USER_DS 0x2b
#define USER_CS 0x33
#define TSS_SELECTOR 0x40

#define CR0_BITS 0x80010033  // PG WP NE ET MP PE
#define CR4_BITS 0x620       // OSXMMEXCPT OSFXSR PAE: ring 3 may use SSE
#define MSR_EFER 0xc0000080
#define EFER_BITS 0x900  // NXE LME

#define PAGE_BITS 0x67  // present, writable, user, accessed, dirty
#define PAGE_LARGE 0x80
#define PAGE_UNCACHED 0x18  // PCD PWT

#define BOOT_MARKER_PORT 0x80
#define BOOT_MARKER_ENTRY 0x40
#define BOOT_MARKER_MAIN 0x41

// One block of this size and alignment per CPU. Its first word points to the CPU's record
// (lib/cpu.h); the ring-3 stack grows down from its middle, the ring-0 stack from its end.
#define CPU_STACK_SIZE 16384
#define MAX_CPUS 254

// The entry code of vector V is at TRAP_STUBS + V * 16: known before linking, so that the IDT is
// data. link.ld places and asserts it.
#define TRAP_STUBS 0x101000
