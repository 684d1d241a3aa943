// The ELF notes that make an image bootable by PVH, and that ask Crossbar for the device tree.

  .section .note.pvh, "a", @note
  .balign 4
  .long 4, 4, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .long PvhEntry

  .balign 4
  .long 9, 4, 1                   // Crossbar, type 1: the last PVH module is to be the FDT
  .asciz "Crossbar"
  .balign 4
  .long 1

  .section .note.GNU-stack, "", @progbits
