// The Multiboot 1 header, for the image that is booted that way. ELF: no address fields.

  .section .multiboot, "a"
  .balign 4
  .long 0x1badb002
  .long 0x3                       // modules on page boundaries, memory information wanted
  .long -(0x1badb002 + 0x3)

  .section .note.GNU-stack, "", @progbits
