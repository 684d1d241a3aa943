// EntryState: the registers with which the boot vCPU enters the guest. Filled by a loader, applied
// by vmm/x86. All other registers have the values the boot protocol and the CPU's reset define.
#pragma once

#include <cstdint>

#include "memory/address.h"

namespace crossbar {

struct EntryState {
  enum class Mode : uint8_t {
    kProtected32,  // PVH and Multiboot: flat 4 GiB segments, paging off, interrupts off
    kLong64,       // Linux 64-bit boot protocol: CR3 = page_table, flat 64-bit segments
  };
  Mode mode = Mode::kProtected32;
  Gpa rip;
  uint64_t rax = 0;  // Multiboot magic
  uint64_t rbx = 0;  // PVH start info or Multiboot info
  uint64_t rsi = 0;  // Linux boot_params
  uint64_t rsp = 0;
  Gpa page_table;    // PML4, kLong64 only
  GuestRange gdt;    // a GDT in guest memory with the segments below, empty: none is loaded
  uint16_t code_selector = 0;
  uint16_t data_selector = 0;
};

}  // namespace crossbar
