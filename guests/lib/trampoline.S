// Where a started CPU wakes up: real mode, in a copy of this code below 1 MiB (lib/smp.cc), which
// takes it to the boot CPU's own path into long mode.

#include "lib/layout.h"

  .section .rodata
  .code16
  .balign 16
  .globl trampoline
trampoline:                       // CS = page, IP = 0
  cli
  cld
  movw %cs, %ax
  movw %ax, %ds
  lgdtl trampoline_gdt_pointer - trampoline
  movl $0x11, %eax                // ET PE: caches on
  movl %eax, %cr0
  ljmpl $KERNEL32_CS, $StartedProtected
  .balign 4
trampoline_gdt_pointer:
  .word 0x37
  .long boot_gdt
  .globl trampoline_end
trampoline_end:

  .section .text, "ax"
  .code32
StartedProtected:
  movl $KERNEL_DS, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl started_stack, %esp
  movl $StartOtherCpu, %ebp
  xorl %edi, %edi
  xorl %ebx, %ebx
  jmp  EnterLongModeOn

  .section .bss
  .balign 8
  .globl started_stack            // the end of the stack block of the CPU being started
started_stack:
  .skip 8

  .section .note.GNU-stack, "", @progbits
