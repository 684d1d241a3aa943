#include "boot/bzimage.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "base/check.h"

namespace crossbar {
namespace {

constexpr uint16_t kBootFlag = 0xaa55;
constexpr uint32_t kHeaderMagic = 0x53726448;  // "HdrS"
constexpr size_t kHeaderOffset = offsetof(boot_params, hdr);
constexpr size_t kHeaderBase = 0x202;  // the header ends this far plus the byte at 0x201 in
constexpr size_t kHeaderSizeByte = 0x201;
constexpr size_t kSectorSize = 512;
constexpr uint16_t kFirst64BitProtocol = 0x020c;  // the first with xloadflags
constexpr uint64_t kEntryOffset = 0x200;
constexpr uint8_t kUnregisteredLoader = 0xff;

// What boot_params has room for, and the last field we read.
constexpr size_t kHeaderLimit = offsetof(boot_params, edd_mbr_sig_buffer);
constexpr size_t kHeaderNeeded = kHeaderOffset + offsetof(setup_header, handover_offset);
static_assert(kHeaderOffset == 0x1f1 && kHeaderLimit == 0x290 && sizeof(boot_params) == 4096);

// boot_params with the kernel's setup header in it and all else zero, once that is one we can load.
Result<boot_params> ReadSetup(const ImageFile& kernel, std::span<const std::byte> head) {
  const size_t end = kHeaderBase + std::to_integer<size_t>(head[kHeaderSizeByte]);
  if (end > head.size()) {
    return Fail("kernel '{}' is truncated: {:#x} bytes end within its setup header; copy it again",
                kernel.name(), kernel.size());
  }
  boot_params params{};
  const std::span<const std::byte> copied =
      head.subspan(kHeaderOffset, std::min(end, kHeaderLimit) - kHeaderOffset);
  std::memcpy(&params.hdr, copied.data(), std::min(copied.size(), sizeof params.hdr));

  const setup_header& header = params.hdr;
  if (header.version < kFirst64BitProtocol) {
    return Fail(
        "kernel '{}' speaks boot protocol {}.{:02}, and 2.12 is needed; give Linux 3.8 or "
        "newer",
        kernel.name(), header.version >> 8, header.version & 0xff);
  }
  if (end < kHeaderNeeded || end > kHeaderLimit) {
    return Fail("kernel '{}' has a setup header that ends at {:#x}; is the file damaged?",
                kernel.name(), end);
  }
  if ((header.xloadflags & XLF_KERNEL_64) == 0 || (header.loadflags & LOADED_HIGH) == 0)
    return Fail("kernel '{}' is a 32-bit Linux; give a 64-bit one", kernel.name());
  return params;
}

// The protected-mode code, all of the file after the setup sectors.
struct Payload {
  uint64_t offset = 0;
  uint64_t size = 0;
};

Result<Payload> FindPayload(const ImageFile& kernel, const setup_header& header) {
  constexpr unsigned kDefaultSetupSectors = 4;  // what 0 stands for
  const unsigned sectors = header.setup_sects == 0 ? kDefaultSetupSectors : header.setup_sects;
  Payload payload{.offset = (sectors + 1) * kSectorSize};
  const uint64_t expected = uint64_t{header.syssize} * 16;
  // syssize rounds up to paragraphs.
  if (payload.offset + std::max(expected, kEntryOffset + 16) > kernel.size() + 15) {
    return Fail(
        "kernel '{}' is truncated: it has {:#x} bytes and its header announces {:#x}; copy it again",
        kernel.name(), kernel.size(), payload.offset + expected);
  }
  payload.size = kernel.size() - payload.offset;
  return payload;
}

// Takes what the kernel needs before it can read the memory map: init_size bytes from where it
// runs. A kernel below pref_address moves itself up there, so nothing below is any use to it.
Result<Gpa> PlaceKernel(LoadContext& context, const setup_header& header, uint64_t payload_size) {
  const ImageFile& kernel = *context.request().kernel;
  const uint64_t size = std::max<uint64_t>(header.init_size, payload_size);
  const std::string what = fmt::format("kernel '{}'", kernel.name());
  if (header.relocatable_kernel == 0) {
    const auto range = GuestRange::Checked(header.pref_address, size);
    if (!range || range->last().value() >= k4GiB) {
      return Fail("kernel '{}' runs at {:#x} only, above 4 GiB; configure CONFIG_RELOCATABLE=y",
                  kernel.name(), uint64_t{header.pref_address});
    }
    TRY(context.placement().Claim(*range, what));
    return range->start;
  }
  if (!std::has_single_bit(header.kernel_alignment) || header.pref_address >= k4GiB) {
    return Fail("kernel '{}' wants alignment {:#x} at {:#x}; is the file damaged?", kernel.name(),
                uint32_t{header.kernel_alignment}, uint64_t{header.pref_address});
  }
  const Gpa lowest = std::max(Gpa(header.pref_address), x86_layout::kHighMemory);
  const GuestRange bounds{lowest, Gpa(k4GiB) - lowest};
  return TRY(context.placement().ClaimLowest(size, header.kernel_alignment, bounds, what)).start;
}

// Below initrd_addr_max, the highest byte the kernel allows, and below 4 GiB, so that no kernel
// needs XLF_CAN_BE_LOADED_ABOVE_4G.
Result<> LoadInitrd(LoadContext& context, setup_header* header, LoadedGuest* guest) {
  const ImageFile* initrd = context.request().initrd;
  if (initrd == nullptr) return {};
  const uint64_t limit = uint64_t{header->initrd_addr_max} + 1;
  const uint64_t lowest = x86_layout::kHighMemory.value();
  const GuestRange bounds{x86_layout::kHighMemory, limit > lowest ? limit - lowest : 0};
  const GuestRange range = TRY(context.LoadModule(*initrd, "initrd", bounds));
  header->ramdisk_image = static_cast<uint32_t>(range.start.value());
  header->ramdisk_size = static_cast<uint32_t>(range.size);
  guest->modules.push_back(range);
  return {};
}

void FillE820(const PlatformInfo& platform, boot_params* params) {
  size_t count = 0;
  for (const MemoryMapEntry& entry : MakeMemoryMap(platform)) {
    CHECK(count < std::size(params->e820_table), "too many ranges of RAM");
    params->e820_table[count++] = {.addr = entry.range.start.value(),
                                   .size = entry.range.size,
                                   .type = static_cast<uint32_t>(entry.type)};
  }
  params->e820_entries = static_cast<uint8_t>(count);
}

// Maps the first 4 GiB to themselves with 2 MiB pages: boot.rst wants the kernel, boot_params and
// the command line mapped, all of which lie there.
Result<> WritePageTables(const GuestRam& ram) {
  constexpr uint64_t kPresentWritable = 0x3;  // Intel SDM volume 3, 4.5: bits 0 and 1
  constexpr uint64_t kLargePage = 0x80;
  constexpr size_t kEntries = 512;
  constexpr size_t kDirectories = 4;
  using Table = std::array<uint64_t, kEntries>;
  static_assert((2 + kDirectories) * sizeof(Table) == x86_layout::kPageTables.size);

  const Gpa pml4 = x86_layout::kPageTables.start;
  const Gpa pdpt = pml4 + sizeof(Table);
  Table table{};
  table[0] = pdpt.value() | kPresentWritable;
  TRY(ram.WriteObject(pml4, table));
  table = {};
  for (size_t i = 0; i < kDirectories; ++i)
    table[i] = (pdpt + (i + 1) * sizeof(Table)).value() | kPresentWritable;
  TRY(ram.WriteObject(pdpt, table));
  for (size_t i = 0; i < kDirectories; ++i) {
    for (size_t j = 0; j < kEntries; ++j)
      table[j] = ((i * kEntries + j) * 2 * kMiB) | kPresentWritable | kLargePage;
    TRY(ram.WriteObject(pdpt + (i + 1) * sizeof(Table), table));
  }
  return {};
}

Result<> WriteGdt(const GuestRam& ram) {
  // Intel SDM volume 3, 3.4.5: flat 4 GiB, present, ring 0; 64-bit code, read-write data. Both are
  // marked accessed, so that no CPU writes here.
  constexpr std::array<uint64_t, 4> kGdt = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
  static_assert(sizeof kGdt == x86_layout::kGdt.size);
  static_assert(x86_layout::kCodeSelector == 2 * 8 && x86_layout::kDataSelector == 3 * 8);
  return ram.WriteObject(x86_layout::kGdt.start, kGdt);
}

struct Checked {
  boot_params params;
  Payload payload;
};

// What needs no RAM to be told.
Result<Checked> Check(const LoadRequest& request, std::span<const std::byte> head) {
  const boot_params params = TRY(ReadSetup(*request.kernel, head));
  const setup_header& header = params.hdr;
  if (!request.modules.empty()) {
    return Fail("kernel '{}' is a bzImage, which takes no modules; put the files into the initrd",
                request.kernel->name());
  }
  if (request.command_line.size() > header.cmdline_size) {
    return Fail("the command line has {} characters, and kernel '{}' takes at most {}; shorten it",
                request.command_line.size(), request.kernel->name(), uint32_t{header.cmdline_size});
  }
  return Checked{params, TRY(FindPayload(*request.kernel, header))};
}

}  // namespace

bool LooksLikeBzImage(std::span<const std::byte> head) {
  uint16_t boot_flag = 0;
  uint32_t magic = 0;
  constexpr size_t kMagicOffset = kHeaderOffset + offsetof(setup_header, header);
  if (head.size() < kMagicOffset + sizeof magic) return false;
  std::memcpy(&boot_flag, &head[kHeaderOffset + offsetof(setup_header, boot_flag)],
              sizeof boot_flag);
  std::memcpy(&magic, &head[kMagicOffset], sizeof magic);
  return boot_flag == kBootFlag && magic == kHeaderMagic;
}

Result<> CheckBzImage(const LoadRequest& request, std::span<const std::byte> head) {
  TRY(Check(request, head));
  return {};
}

Result<LoadedGuest> LoadBzImage(LoadContext& context, std::span<const std::byte> head) {
  const LoadRequest& request = context.request();
  auto [params, payload] = TRY(Check(request, head));
  TRY(context.ReserveLowMemory(std::array{x86_layout::kGdt, x86_layout::kBootInfo,
                                          x86_layout::kPageTables, x86_layout::kStrings}));
  LoadedGuest guest;
  guest.format = KernelFormat::kBzImage;
  const Gpa start = TRY(PlaceKernel(context, params.hdr, payload.size));
  guest.kernel = {start, payload.size};
  // Only the file's bytes: the kernel itself clears what follows them.
  TRY(context.ReadSegment({payload.offset, payload.size, guest.kernel}));

  setup_header& header = params.hdr;
  header.type_of_loader = kUnregisteredLoader;
  header.code32_start = static_cast<uint32_t>(start.value());
  header.cmd_line_ptr = static_cast<uint32_t>(
      TRY(context.AddString(request.command_line, "the command line")).value());
  TRY(LoadInitrd(context, &header, &guest));
  params.acpi_rsdp_addr = request.rsdp.value();
  FillE820(context.platform(), &params);
  TRY(context.ram().WriteObject(x86_layout::kBootInfo.start, params));
  TRY(WritePageTables(context.ram()));
  TRY(WriteGdt(context.ram()));

  guest.entry.mode = EntryState::Mode::kLong64;
  guest.entry.rip = start + kEntryOffset;
  guest.entry.rsi = x86_layout::kBootInfo.start.value();
  guest.entry.page_table = x86_layout::kPageTables.start;
  guest.entry.gdt = x86_layout::kGdt;
  guest.entry.code_selector = x86_layout::kCodeSelector;
  guest.entry.data_selector = x86_layout::kDataSelector;
  return guest;
}

}  // namespace crossbar
