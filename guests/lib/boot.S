// Entry of the boot CPU: 32-bit protected mode with paging off, to 64-bit code on a C++ stack.
//
// The page tables are data that the assembler fills in, so that nothing has to be computed before
// long mode: under PVM every instruction up to ring 3 is emulated (lib/ring3.h). They map the first
// 4 GiB onto themselves with 2 MiB pages, all of it accessible to ring 3; lib/paging.cc adds more.

#include "lib/layout.h"

  .section .text.entry, "ax"
  .code32

  .globl PvhEntry                 // PVH: EBX = hvm_start_info
PvhEntry:
  movb $BOOT_MARKER_ENTRY, %al
  outb %al, $BOOT_MARKER_PORT
  xorl %edi, %edi
  jmp  EnterLongMode

  .globl MultibootEntry           // Multiboot 1: EAX = magic, EBX = multiboot_info
MultibootEntry:
  movl %eax, %edi
  movb $BOOT_MARKER_ENTRY, %al
  outb %al, $BOOT_MARKER_PORT

EnterLongMode:                    // EDI = Multiboot magic or 0, EBX = boot information
  cli
  cld
  movl $cpu_stacks + CPU_STACK_SIZE, %esp
  movl $StartBootCpu, %ebp

  .globl EnterLongModeOn          // ESP = stack, EBP = function, EDI and EBX = its arguments
EnterLongModeOn:
  lgdt boot_gdt_pointer
  movl $boot_pml4, %eax
  movl %eax, %cr3
  movl $CR4_BITS, %eax
  movl %eax, %cr4
  movl $MSR_EFER, %ecx
  movl $EFER_BITS, %eax
  xorl %edx, %edx
  wrmsr
  movl $CR0_BITS, %eax
  movl %eax, %cr0
  ljmp $KERNEL_CS, $1f

  .code64
1:
  movl $KERNEL_DS, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  xorl %eax, %eax
  movl %eax, %fs
  movl %eax, %gs
  movl %esp, %esp                 // the upper halves are undefined after 32-bit code
  movl %edi, %edi
  movl %ebx, %esi
  movl %ebp, %eax
  xorl %ebp, %ebp
  call *%rax                      // (magic, boot information); does not return
  ud2

// A GDT whose selectors are Linux's own: PVM runs ring 3 on the host's descriptors, and those have
// these numbers. lib/cpu.cc gives each CPU a copy with its TSS.
  .section .data
  .balign 16
  .globl boot_gdt
boot_gdt:
  .quad 0
  .quad 0x00cf9b000000ffff        // KERNEL32_CS
  .quad 0x00af9b000000ffff        // KERNEL_CS
  .quad 0x00cf93000000ffff        // KERNEL_DS
  .quad 0x00cffb000000ffff        // 32-bit user code, not used
  .quad 0x00cff3000000ffff        // USER_DS
  .quad 0x00affb000000ffff        // USER_CS
boot_gdt_end:
  .globl boot_gdt_pointer
boot_gdt_pointer:
  .word boot_gdt_end - boot_gdt - 1
  .quad boot_gdt

  .balign 4096
  .globl boot_pml4
boot_pml4:
  .quad boot_pdpt + PAGE_BITS
  .fill 511, 8, 0
boot_pdpt:
  .quad boot_pd + PAGE_BITS
  .quad boot_pd + 0x1000 + PAGE_BITS
  .quad boot_pd + 0x2000 + PAGE_BITS
  .quad boot_pd + 0x3000 + PAGE_BITS
  .fill 508, 8, 0
boot_pd:
  .set frame, 0
  .rept 3 * 512                   // 0 to 3 GiB: RAM
  .quad frame + PAGE_BITS + PAGE_LARGE
  .set frame, frame + 0x200000
  .endr
  .rept 512                       // 3 to 4 GiB: devices, uncached
  .quad frame + PAGE_BITS + PAGE_LARGE + PAGE_UNCACHED
  .set frame, frame + 0x200000
  .endr

// The boot CPU's stacks; those of the others come from the heap (lib/smp.cc).
  .section .bss
  .balign CPU_STACK_SIZE
  .globl cpu_stacks
cpu_stacks:
  .skip CPU_STACK_SIZE

  .section .note.GNU-stack, "", @progbits
