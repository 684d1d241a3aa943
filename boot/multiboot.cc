#include "boot/multiboot.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"

namespace crossbar {
namespace {

constexpr uint32_t kHeaderMagic = 0x1badb002;
constexpr uint32_t kLoaderMagic = 0x2badb002;

// Header flags that a loader must understand (section 3.1.2). Modules are always page-aligned and
// memory is always described, so bits 0 and 1 ask for nothing more.
constexpr uint32_t kMandatory = 0xffff;
constexpr uint32_t kUnderstood = 1u << 0 | 1u << 1;
constexpr unsigned kVideoBit = 2;

// The information structure up to vbe_interface_len (section 3.3). What its flags do not announce
// stays zero.
struct Information {
  uint32_t flags;
  uint32_t memory_lower_kib;
  uint32_t memory_upper_kib;
  uint32_t boot_device;
  uint32_t command_line;
  uint32_t module_count;
  uint32_t module_list;
  std::array<uint32_t, 4> symbols;
  uint32_t memory_map_bytes;
  uint32_t memory_map;
  std::array<uint32_t, 3> drives_and_config;
  uint32_t loader_name;
  std::array<uint32_t, 5> apm_and_vbe;
};
static_assert(sizeof(Information) == 88);
static_assert(offsetof(Information, loader_name) == 64);

// Flags of the information structure.
constexpr uint32_t kHasMemory = 1u << 0;
constexpr uint32_t kHasCommandLine = 1u << 2;
constexpr uint32_t kHasModules = 1u << 3;
constexpr uint32_t kHasMemoryMap = 1u << 6;
constexpr uint32_t kHasLoaderName = 1u << 9;

struct ModuleEntry {
  uint32_t start;
  uint32_t end;  // one past the last byte
  uint32_t string;
  uint32_t reserved;
};
static_assert(sizeof(ModuleEntry) == 16);

// `size` counts what follows it, so the next entry is size + 4 bytes on.
struct [[gnu::packed]] MapEntry {
  uint32_t size;
  uint64_t address;
  uint64_t length;
  uint32_t type;
};
static_assert(sizeof(MapEntry) == 24);

constexpr size_t kMaxModules = x86_layout::kModuleList.size / sizeof(ModuleEntry);
constexpr size_t kMaxMapEntries = x86_layout::kMemoryMap.size / sizeof(MapEntry);

// Everything we pass lies below 4 GiB by placement.
uint32_t Low(Gpa address) {
  CHECK(address.value() < k4GiB, "{}", address);
  return static_cast<uint32_t>(address.value());
}

// Command lines begin with the file's name, as GRUB and QEMU pass them and kernels expect to skip.
std::string NameAndArguments(const ImageFile& file, std::string_view arguments) {
  return arguments.empty() ? file.name() : fmt::format("{} {}", file.name(), arguments);
}

Result<> CheckFlags(const ImageFile& kernel, const MultibootHeader& header) {
  const uint32_t unknown = header.flags & kMandatory & ~kUnderstood;
  if (unknown == 0) return {};
  const int bit = std::countr_zero(unknown);
  if (bit == kVideoBit) {
    return Fail(
        "Multiboot kernel '{}' requires a video mode (header flag bit 2), and there is no "
        "display; clear the bit",
        kernel.name());
  }
  return Fail("Multiboot kernel '{}' requires the unknown feature of header flag bit {}; clear it",
              kernel.name(), bit);
}

// Section 3.1.3: where the header's own address fields put the image.
Result<KernelSegment> SegmentFromHeader(const ImageFile& kernel, const MultibootHeader& header) {
  const auto fail = [&](std::string_view why) {
    return Fail("Multiboot kernel '{}': {}; correct its header's address fields", kernel.name(),
                why);
  };
  if (header.load_address > header.header_address)
    return fail(fmt::format("load_addr {:#x} is above header_addr {:#x}", header.load_address,
                            header.header_address));
  const uint64_t before_header = header.header_address - header.load_address;
  if (before_header > header.offset)
    return fail(fmt::format("load_addr {:#x} lies {:#x} bytes before the start of the file",
                            header.load_address, before_header - header.offset));
  KernelSegment segment;
  segment.offset = header.offset - before_header;
  segment.file_size = kernel.size() - segment.offset;
  if (header.load_end != 0) {
    const uint64_t wanted = uint64_t{header.load_end} - header.load_address;
    if (header.load_end <= header.load_address || wanted > segment.file_size)
      return fail(fmt::format("load_end_addr {:#x} is not within the {:#x} bytes of the file",
                              header.load_end, kernel.size()));
    segment.file_size = wanted;
  }
  uint64_t memory_size = segment.file_size;
  if (header.bss_end != 0) {
    if (header.bss_end < header.load_address + segment.file_size)
      return fail(
          fmt::format("bss_end_addr {:#x} is below the end of the loaded part", header.bss_end));
    memory_size = header.bss_end - header.load_address;
  }
  segment.target = {Gpa(header.load_address), memory_size};
  return segment;
}

struct Plan {
  std::vector<KernelSegment> segments;
  Gpa entry;
};

Result<Plan> MakePlan(const ImageFile& kernel, const MultibootHeader& header, const ElfImage* elf) {
  if (header.has_addresses()) {
    const KernelSegment segment = TRY(SegmentFromHeader(kernel, header));
    if (!segment.target.Contains(Gpa(header.entry))) {
      return Fail("Multiboot kernel '{}': entry_addr {:#x} is not within the image; correct it",
                  kernel.name(), header.entry);
    }
    return Plan{{segment}, Gpa(header.entry)};
  }
  if (elf == nullptr) {
    return Fail(
        "Multiboot kernel '{}' is no ELF file and has no addresses (header flag bit 16); link it as ELF",
        kernel.name());
  }
  if (elf->is_64) {
    return Fail("Multiboot kernel '{}' is an ELF64 file; convert it: objcopy -O elf32-i386",
                kernel.name());
  }
  if (!elf->entry) {
    return Fail("Multiboot kernel '{}' has an entry point that no segment holds; link it again",
                kernel.name());
  }
  return Plan{elf->segments, *elf->entry};
}

Result<> LoadModules(LoadContext& context, LoadedGuest* guest, Information* information) {
  const LoadRequest& request = context.request();
  const size_t count = request.modules.size() + (request.initrd != nullptr ? 1 : 0);
  if (count > kMaxModules)
    return Fail("{} modules are too many; give at most {}", count, kMaxModules);
  std::vector<ModuleEntry> list;
  const auto add = [&](const ImageFile& file, std::string_view kind,
                       std::string_view arguments) -> Result<> {
    const GuestRange range = TRY(context.LoadModule(file, kind, kModuleBounds));
    const Gpa string =
        TRY(context.AddString(NameAndArguments(file, arguments), "a module's string"));
    list.push_back(
        {.start = Low(range.start), .end = Low(range.end()), .string = Low(string), .reserved = 0});
    guest->modules.push_back(range);
    return {};
  };
  if (request.initrd != nullptr) TRY(add(*request.initrd, "initrd", {}));
  for (const LoadRequest::Module& module : request.modules)
    TRY(add(*module.file, "module", module.arguments));
  TRY(context.ram().Write(x86_layout::kModuleList.start, std::as_bytes(std::span(list))));
  information->flags |= kHasModules;
  information->module_count = static_cast<uint32_t>(list.size());
  information->module_list = Low(x86_layout::kModuleList.start);
  return {};
}

Result<> DescribeMemory(LoadContext& context, Information* information) {
  std::vector<MapEntry> map;
  for (const MemoryMapEntry& entry : MakeMemoryMap(context.platform())) {
    map.push_back({.size = sizeof(MapEntry) - sizeof(MapEntry::size),
                   .address = entry.range.start.value(),
                   .length = entry.range.size,
                   .type = static_cast<uint32_t>(entry.type)});
    // mem_lower counts from 0, mem_upper from 1 MiB to the first hole.
    if (entry.type != MemoryMapEntry::Type::kRam || entry.range.start.value() >= k4GiB) continue;
    const auto kib = static_cast<uint32_t>(entry.range.size / kKiB);
    if (entry.range.start == Gpa(0)) information->memory_lower_kib = kib;
    if (entry.range.start == x86_layout::kHighMemory) information->memory_upper_kib = kib;
  }
  CHECK(map.size() <= kMaxMapEntries, "{} ranges of RAM", map.size());
  TRY(context.ram().Write(x86_layout::kMemoryMap.start, std::as_bytes(std::span(map))));
  information->flags |= kHasMemory | kHasMemoryMap;
  information->memory_map_bytes = static_cast<uint32_t>(map.size() * sizeof(MapEntry));
  information->memory_map = Low(x86_layout::kMemoryMap.start);
  return {};
}

}  // namespace

std::optional<MultibootHeader> FindMultibootHeader(std::span<const std::byte> head) {
  const std::span<const std::byte> searched = head.first(std::min(head.size(), kMultibootSearch));
  // magic, flags, checksum, then the five address fields.
  std::array<uint32_t, 8> words;
  constexpr size_t kShortSize = 3 * sizeof(uint32_t);
  for (size_t offset = 0; offset + kShortSize <= searched.size(); offset += sizeof(uint32_t)) {
    const size_t size = std::min(searched.size() - offset, sizeof words);
    words = {};
    std::memcpy(words.data(), searched.data() + offset, size);
    if (words[0] != kHeaderMagic || words[0] + words[1] + words[2] != 0) continue;
    MultibootHeader header{.offset = offset, .flags = words[1]};
    if (!header.has_addresses()) return header;
    if (size < sizeof words) continue;  // not whole within the search
    header.header_address = words[3];
    header.load_address = words[4];
    header.load_end = words[5];
    header.bss_end = words[6];
    header.entry = words[7];
    return header;
  }
  return std::nullopt;
}

Result<LoadedGuest> LoadMultiboot(LoadContext& context, const MultibootHeader& header,
                                  const ElfImage* elf) {
  const LoadRequest& request = context.request();
  const ImageFile& kernel = *request.kernel;
  TRY(CheckFlags(kernel, header));
  const Plan plan = TRY(MakePlan(kernel, header, elf));
  if (plan.entry.value() >= k4GiB)
    return Fail("Multiboot kernel '{}' has its entry point above 4 GiB; link it again",
                kernel.name());
  TRY(context.ReserveLowMemory(std::array{x86_layout::kBootInfo, x86_layout::kMemoryMap,
                                          x86_layout::kModuleList, x86_layout::kStrings}));
  LoadedGuest guest;
  guest.format = KernelFormat::kMultiboot;
  guest.kernel = TRY(context.LoadKernel(plan.segments));

  Information information{};
  information.flags = kHasCommandLine | kHasLoaderName;
  information.command_line = Low(
      TRY(context.AddString(NameAndArguments(kernel, request.command_line), "the command line")));
  information.loader_name = Low(TRY(context.AddString("crossbar", "the loader's name")));
  TRY(LoadModules(context, &guest, &information));
  TRY(DescribeMemory(context, &information));
  TRY(context.ram().WriteObject(x86_layout::kBootInfo.start, information));

  guest.entry.mode = EntryState::Mode::kProtected32;
  guest.entry.rip = plan.entry;
  guest.entry.rax = kLoaderMagic;
  guest.entry.rbx = x86_layout::kBootInfo.start.value();
  guest.entry.code_selector = x86_layout::kCodeSelector;
  guest.entry.data_selector = x86_layout::kDataSelector;
  return guest;
}

}  // namespace crossbar
