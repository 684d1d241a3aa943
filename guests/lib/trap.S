// Traps: the IDT, its 256 entry stubs, and the way into ring 3 and back.

#include "lib/layout.h"

// Stubs: bring every trap to one frame (struct TrapFrame in lib/trap.h), error code or not.
  .section .text.stubs, "ax"
  .code64
trap_stubs:
  .set vector, 0
  .rept 256
  .org trap_stubs + vector * 16
  .if vector == 3
  jmp  BreakpointEntry
  .else
  .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || \
        vector == 29 || vector == 30)   // those with an error code
  pushq $0
  .endif
  pushq $vector
  jmp  TrapEntry
  .endif
  .set vector, vector + 1
  .endr
  .org trap_stubs + 256 * 16

  .section .text, "ax"
BreakpointEntry:
  cmpq $Ring3Done, (%rsp)         // int3 at the end of a ring-3 run?
  je   Ring3Leave
  pushq $0
  pushq $3
TrapEntry:
  pushq %rax
  pushq %rcx
  pushq %rdx
  pushq %rbx
  pushq %rbp
  pushq %rsi
  pushq %rdi
  pushq %r8
  pushq %r9
  pushq %r10
  pushq %r11
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, %rbx
  movq %rsp, %rdi
  andq $-16, %rsp
  cld
  call HandleTrap                 // void HandleTrap(TrapFrame*)
  movq %rbx, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %r11
  popq %r10
  popq %r9
  popq %r8
  popq %rdi
  popq %rsi
  popq %rbp
  popq %rbx
  popq %rdx
  popq %rcx
  popq %rax
  addq $16, %rsp
  iretq

// uint64_t Ring3Enter(function, argument, uint64_t* tss_rsp0, user_stack, user_rflags)
//
// A trap out of ring 3 starts at *tss_rsp0, so that is set to this very frame: the int3 that ends
// the run then finds it by dropping what the CPU pushed. Ring 3 leaves by int3, because that and
// faults are what PVM delivers from there: `int N` gives #UD, `syscall` does not change rings.
  .globl Ring3Enter
Ring3Enter:
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  pushfq                          // 16-byte aligned here: the CPU would align RSP0 down
  movq %rsp, (%rdx)
  pushq $USER_DS
  pushq %rcx
  pushq %r8
  pushq $USER_CS
  pushq $Ring3Start
  movq %rdi, %rax
  movq %rsi, %rdi
  iretq

Ring3Start:
  xorl %ebp, %ebp
  call *%rax
  int3
Ring3Done:
  ud2

Ring3Leave:                       // RAX = the result
  addq $40, %rsp
  movl $KERNEL_DS, %ecx
  movl %ecx, %ss
  // An exit that is not MMIO has to come first: QEMU's SVM leaves the type of the exception that the
  // guest took in EXITINTINFO of the next exit, though without its valid bit, and KVM since 6.14
  // refuses to emulate MMIO then (KVM_INTERNAL_ERROR_DELIVERY_EV).
  movq %rax, %r12
  cpuid
  movq %r12, %rax
  popfq
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  ret

// The IDT: interrupt gates to the stubs; vector 3 may be raised by ring 3.
  .section .data
  .balign 16
idt:
  .set vector, 0
  .rept 256
  .word (TRAP_STUBS + vector * 16) & 0xffff
  .word KERNEL_CS
  .if vector == 3
  .word 0xee00
  .else
  .word 0x8e00
  .endif
  .word TRAP_STUBS >> 16
  .quad 0
  .set vector, vector + 1
  .endr
  .globl idt_pointer
idt_pointer:
  .word . - idt - 1
  .quad idt

  .section .note.GNU-stack, "", @progbits
