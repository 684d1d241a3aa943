// LoadGuest: puts a kernel and what belongs to it into guest RAM and says how to enter it.
//
// The format is told from the content: Linux bzImage (64-bit boot protocol), ELF with a PVH note,
// Multiboot 1. vmm/ calls it at start and again, over RAM that has been used, at a guest reboot; on
// one thread, while no vCPU runs. Every error is one line that names the file, the reason and the
// next step. It writes only what it placed (boot/placement.h, boot/x86_layout.h), never the ACPI
// tables and the reset vector, which are boot/acpi.h's and boot/reset_vector.h's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "boot/entry_state.h"
#include "boot/image_file.h"
#include "boot/platform_info.h"
#include "memory/address.h"
#include "memory/guest_ram.h"

namespace crossbar {

enum class KernelFormat : uint8_t { kBzImage, kPvh, kMultiboot };

// "bzImage", "PVH ELF", "Multiboot".
const char* FormatName(KernelFormat format);

struct LoadRequest {
  struct Module {
    const ImageFile* file = nullptr;
    std::string arguments;
  };

  const ImageFile* kernel = nullptr;
  const ImageFile* initrd = nullptr;  // may be absent
  std::string command_line;
  std::vector<Module> modules;  // PVH and Multiboot only; they follow the initrd
  Gpa rsdp;                     // 0: no ACPI
  // A flattened device tree, or empty. Handed, as the last module with the string "fdt", to PVH
  // kernels that ask for it with an ELF note named "Crossbar" of type 1.
  std::span<const std::byte> device_tree;
  // RAM was never written: what must be zero (.bss) is so already and is not touched.
  bool ram_is_zero = false;
};

struct LoadedGuest {
  EntryState entry;
  KernelFormat format = KernelFormat::kPvh;
  GuestRange kernel;                // from the first to the last byte it occupies
  std::vector<GuestRange> modules;  // the initrd first, the device tree last
};

// Whether the kernel is one that LoadGuest knows and, of a bzImage, goes with the rest of the request.
// Needs no RAM, so that a wrong file is found before there is any.
Result<> CheckKernel(const LoadRequest& request);

Result<LoadedGuest> LoadGuest(const GuestRam& ram, const PlatformInfo& platform,
                              const LoadRequest& request);

}  // namespace crossbar
