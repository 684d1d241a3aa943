#include "boot/loader.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "boot/bzimage.h"
#include "boot/elf.h"
#include "boot/load_context.h"
#include "boot/multiboot.h"
#include "boot/pvh.h"

namespace crossbar {
namespace {

using Head = std::span<const std::byte>;

bool HasAt(Head head, size_t offset, std::string_view magic) {
  return head.size() >= offset + magic.size() &&
         std::memcmp(head.data() + offset, magic.data(), magic.size()) == 0;
}

// Files that people hand to a VMM by mistake, and what to do with each.
struct ForeignFormat {
  size_t offset;
  std::string_view magic;
  std::string_view is;
  std::string_view next_step;
};
using namespace std::string_view_literals;
constexpr ForeignFormat kForeignFormats[] = {
    {0, "\x1f\x8b"sv, "gzip-compressed", "uncompress it with gunzip"},
    {0, "\xfd\x37zXZ\0"sv, "xz-compressed", "uncompress it with unxz"},
    {0, "\x28\xb5\x2f\xfd"sv, "zstd-compressed", "uncompress it with unzstd"},
    {0, "BZh"sv, "bzip2-compressed", "uncompress it with bunzip2"},
    {0, "\x02\x21\x4c\x18"sv, "lz4-compressed", "uncompress it with unlz4"},
    {0, "\x04\x22\x4d\x18"sv, "lz4-compressed", "uncompress it with unlz4"},
    {0x38, "ARM\x64"sv, "an AArch64 Linux Image", "give an x86 kernel"},
    {0x38, "RSC\x05"sv, "a RISC-V Linux Image", "give an x86 kernel"},
    {0, "MZ"sv, "an EFI application without a Linux setup header", "give a bzImage or an ELF file"},
};

Error NotAKernel(const ImageFile& kernel, Head head) {
  for (const ForeignFormat& format : kForeignFormats) {
    if (HasAt(head, format.offset, format.magic))
      return Error::Of("kernel '{}' is {}", kernel.name(), format.is).WithHint(format.next_step);
  }
  return Error::Of("'{}' is no kernel known here", kernel.name())
      .WithHint("give a Linux bzImage, an ELF file with a PVH note, or a Multiboot 1 kernel");
}

Error NoProtocol(const ImageFile& kernel) {
  return Error::Of("'{}' is an ELF file without a PVH note and without a Multiboot header",
                   kernel.name())
      .WithHint("a Linux vmlinux needs CONFIG_PVH=y; or give its bzImage");
}

struct Recognized {
  KernelFormat format = KernelFormat::kBzImage;
  std::vector<std::byte> head;  // of the file
  std::optional<ElfImage> elf;
  std::optional<MultibootHeader> multiboot;
};

Result<Recognized> Recognize(const ImageFile& kernel) {
  if (kernel.size() == 0) return Fail("kernel '{}' is empty; check how it was made", kernel.name());
  Recognized it;
  // Every format is told, and its header found, within the first 8 KiB: Multiboot's limit.
  it.head.resize(std::min<uint64_t>(kernel.size(), kMultibootSearch));
  TRY(kernel.ReadAt(0, it.head));
  if (LooksLikeElf(it.head)) it.elf = TRY(ParseElf(kernel));
  if (!it.elf && LooksLikeBzImage(it.head)) return it;
  if (it.elf && it.elf->pvh_entry) {
    it.format = KernelFormat::kPvh;
    return it;
  }
  it.multiboot = FindMultibootHeader(it.head);
  if (!it.multiboot)
    return std::unexpected(it.elf ? NoProtocol(kernel) : NotAKernel(kernel, it.head));
  it.format = KernelFormat::kMultiboot;
  return it;
}

}  // namespace

const char* FormatName(KernelFormat format) {
  switch (format) {
    case KernelFormat::kBzImage:
      return "bzImage";
    case KernelFormat::kPvh:
      return "PVH ELF";
    case KernelFormat::kMultiboot:
      return "Multiboot";
  }
  return "?";
}

Result<> CheckKernel(const LoadRequest& request) {
  const Recognized kernel = TRY(Recognize(*request.kernel));
  return kernel.format == KernelFormat::kBzImage ? CheckBzImage(request, kernel.head) : Result<>();
}

Result<LoadedGuest> LoadGuest(const GuestRam& ram, const PlatformInfo& platform,
                              const LoadRequest& request) {
  const Recognized kernel = TRY(Recognize(*request.kernel));
  LoadContext context(ram, platform, request);
  switch (kernel.format) {
    case KernelFormat::kBzImage:
      return LoadBzImage(context, kernel.head);
    case KernelFormat::kPvh:
      return LoadPvh(context, *kernel.elf);
    case KernelFormat::kMultiboot:
      break;
  }
  return LoadMultiboot(context, *kernel.multiboot, kernel.elf ? &*kernel.elf : nullptr);
}

}  // namespace crossbar
