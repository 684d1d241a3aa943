#include "boot/pvh.h"

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/check.h"

namespace crossbar {
namespace {

// Layouts of start_info.h; all fields little-endian and naturally aligned.
struct StartInfo {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t module_count;
  uint64_t module_list;
  uint64_t command_line;
  uint64_t rsdp;
  uint64_t memory_map;        // from version 1 on
  uint32_t memory_map_count;  // from version 1 on
  uint32_t reserved;
};
static_assert(sizeof(StartInfo) == 56);

struct ModuleEntry {
  uint64_t address;
  uint64_t size;
  uint64_t command_line;
  uint64_t reserved;
};
static_assert(sizeof(ModuleEntry) == 32);

struct MapEntry {
  uint64_t address;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};
static_assert(sizeof(MapEntry) == 24);

constexpr uint32_t kMagic = 0x336ec578;
constexpr size_t kMaxModules = x86_layout::kModuleList.size / sizeof(ModuleEntry);
constexpr size_t kMaxMapEntries = x86_layout::kMemoryMap.size / sizeof(MapEntry);

// Places the initrd, the extra modules and the device tree, in this order: kernels take the first
// module for the initrd, our guests the last for the device tree.
Result<std::vector<LoadContext::PlacedModule>> LoadModules(LoadContext& context, bool device_tree) {
  const LoadRequest& request = context.request();
  std::vector<LoadContext::PlacedModule> placed;
  if (request.initrd != nullptr)
    placed.push_back({TRY(context.LoadModule(*request.initrd, "initrd", kModuleBounds)), Gpa(0)});
  for (const LoadRequest::Module& module : request.modules) {
    const GuestRange range = TRY(context.LoadModule(*module.file, "module", kModuleBounds));
    placed.push_back({range, TRY(context.AddString(module.arguments, "a module's argument"))});
  }
  if (device_tree) {
    const MemoryImage blob("device tree", request.device_tree);
    const GuestRange range = TRY(context.LoadModule(blob, "the", kModuleBounds));
    placed.push_back({range, TRY(context.AddString("fdt", "the device tree's name"))});
  }
  if (placed.size() > kMaxModules)
    return Fail("{} modules are too many; give at most {}", placed.size(), kMaxModules);
  return placed;
}

Result<> WriteModuleList(LoadContext& context,
                         const std::vector<LoadContext::PlacedModule>& modules) {
  std::vector<ModuleEntry> list;
  for (const LoadContext::PlacedModule& module : modules) {
    list.push_back({.address = module.range.start.value(),
                    .size = module.range.size,
                    .command_line = module.string.value(),
                    .reserved = 0});
  }
  return context.ram().Write(x86_layout::kModuleList.start, std::as_bytes(std::span(list)));
}

// Returns the number of entries.
Result<uint32_t> WriteMemoryMap(LoadContext& context) {
  std::vector<MapEntry> map;
  for (const MemoryMapEntry& entry : MakeMemoryMap(context.platform())) {
    map.push_back({.address = entry.range.start.value(),
                   .size = entry.range.size,
                   .type = static_cast<uint32_t>(entry.type),
                   .reserved = 0});
  }
  CHECK(map.size() <= kMaxMapEntries, "{} ranges of RAM", map.size());
  TRY(context.ram().Write(x86_layout::kMemoryMap.start, std::as_bytes(std::span(map))));
  return static_cast<uint32_t>(map.size());
}

}  // namespace

Result<LoadedGuest> LoadPvh(LoadContext& context, const ElfImage& image) {
  const LoadRequest& request = context.request();
  const Gpa entry = *image.pvh_entry;
  if (!image.Contains(entry) || entry.value() >= k4GiB) {
    return Fail("kernel '{}' has PVH entry {}, which no segment below 4 GiB holds; check its note",
                request.kernel->name(), entry);
  }
  TRY(context.ReserveLowMemory(std::array{x86_layout::kBootInfo, x86_layout::kMemoryMap,
                                          x86_layout::kModuleList, x86_layout::kStrings}));
  LoadedGuest guest;
  guest.format = KernelFormat::kPvh;
  guest.kernel = TRY(context.LoadKernel(image.segments));

  const bool device_tree = image.wants_device_tree && !request.device_tree.empty();
  const Gpa command_line = TRY(context.AddString(request.command_line, "the command line"));
  const auto modules = TRY(LoadModules(context, device_tree));
  for (const LoadContext::PlacedModule& module : modules) guest.modules.push_back(module.range);
  TRY(WriteModuleList(context, modules));

  TRY(context.ram().WriteObject(
      x86_layout::kBootInfo.start,
      StartInfo{.magic = kMagic,
                .version = 1,
                .flags = 0,
                .module_count = static_cast<uint32_t>(modules.size()),
                .module_list = modules.empty() ? 0 : x86_layout::kModuleList.start.value(),
                .command_line = command_line.value(),
                .rsdp = request.rsdp.value(),
                .memory_map = x86_layout::kMemoryMap.start.value(),
                .memory_map_count = TRY(WriteMemoryMap(context)),
                .reserved = 0}));
  guest.entry.mode = EntryState::Mode::kProtected32;
  guest.entry.rip = entry;
  guest.entry.rbx = x86_layout::kBootInfo.start.value();
  guest.entry.code_selector = x86_layout::kCodeSelector;
  guest.entry.data_selector = x86_layout::kDataSelector;
  return guest;
}

}  // namespace crossbar
