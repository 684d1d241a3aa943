#include "lib/boot_info.h"

#include "lib/string.h"

namespace guest {

constinit BootInfo boot_info = {};

namespace {

constexpr uint32_t kPvhMagic = 0x336ec578;
constexpr uint32_t kMultibootMagic = 0x2badb002;
constexpr uint32_t kRamType = 1;  // in both protocols

struct HvmStartInfo {
  uint32_t magic, version, flags, module_count;
  uint64_t modules, command_line, rsdp;
  uint64_t memory_map;          // from version 1 on
  uint32_t memory_map_entries;  // from version 1 on
  uint32_t reserved;
};
struct HvmModule {
  uint64_t address, size, command_line, reserved;
};
struct HvmMemoryMapEntry {
  uint64_t address, size;
  uint32_t type, reserved;
};

struct MultibootInfo {
  uint32_t flags, mem_lower, mem_upper, boot_device, command_line, module_count, modules;
  uint32_t symbols[4];
  uint32_t memory_map_size, memory_map;
};
struct MultibootModule {
  uint32_t start, end, text, reserved;
};
struct [[gnu::packed]] MultibootMemoryMapEntry {
  uint32_t size;  // of the rest
  uint64_t address, length;
  uint32_t type;
};

template <typename T>
const T* At(uint64_t address) {
  return reinterpret_cast<const T*>(address);
}

void AddModule(Range range, uint64_t text) {
  if (boot_info.module_count == sizeof(boot_info.modules) / sizeof(boot_info.modules[0])) return;
  BootModule& m = boot_info.modules[boot_info.module_count++];
  m.range = range;
  if (text != 0) CopyText(m.text, sizeof(m.text), At<char>(text));
}

void AddRam(Range range) {
  if (range.size == 0) return;
  if (boot_info.ram_count == sizeof(boot_info.ram) / sizeof(boot_info.ram[0])) return;
  boot_info.ram[boot_info.ram_count++] = range;
}

void ReadPvh(const HvmStartInfo& info) {
  boot_info.protocol = BootInfo::kPvh;
  boot_info.version = info.version;
  boot_info.rsdp = info.rsdp;
  if (info.command_line != 0) {
    CopyText(boot_info.command_line, sizeof(boot_info.command_line), At<char>(info.command_line));
  }
  const auto* modules = At<HvmModule>(info.modules);
  for (uint32_t i = 0; i < info.module_count; ++i) {
    AddModule({modules[i].address, modules[i].size}, modules[i].command_line);
  }
  if (info.version == 0) return;
  const auto* map = At<HvmMemoryMapEntry>(info.memory_map);
  for (uint32_t i = 0; i < info.memory_map_entries; ++i) {
    if (map[i].type == kRamType) AddRam({map[i].address, map[i].size});
  }
}

void ReadMultiboot(const MultibootInfo& info) {
  boot_info.protocol = BootInfo::kMultiboot;
  boot_info.multiboot_flags = info.flags;
  if (info.flags & 1 << 0) {
    boot_info.mem_lower_kib = info.mem_lower;
    boot_info.mem_upper_kib = info.mem_upper;
  }
  if (info.flags & 1 << 2) {
    CopyText(boot_info.command_line, sizeof(boot_info.command_line), At<char>(info.command_line));
  }
  if (info.flags & 1 << 3) {
    const auto* modules = At<MultibootModule>(info.modules);
    for (uint32_t i = 0; i < info.module_count; ++i) {
      AddModule({modules[i].start, modules[i].end - modules[i].start}, modules[i].text);
    }
  }
  if (info.flags & 1 << 6) {
    uint64_t at = info.memory_map;
    while (at < info.memory_map + uint64_t{info.memory_map_size}) {
      const auto* entry = At<MultibootMemoryMapEntry>(at);
      if (entry->type == kRamType) AddRam({entry->address, entry->length});
      at += entry->size + sizeof(entry->size);
    }
  }
}

}  // namespace

void ReadBootInfo(uint32_t magic, uint64_t address) {
  boot_info.protocol = BootInfo::kUnknown;
  if (magic == kMultibootMagic) {
    ReadMultiboot(*At<MultibootInfo>(address));
  } else if (magic == 0 && At<HvmStartInfo>(address)->magic == kPvhMagic) {
    ReadPvh(*At<HvmStartInfo>(address));
  }
}

}  // namespace guest
