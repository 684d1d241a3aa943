#include "boot/load_context.h"

#include <algorithm>
#include <cstring>

namespace crossbar {
namespace {

void AppendRam(GuestRange ram, std::vector<MemoryMapEntry>* map) {
  const GuestRange hole = x86_layout::kLegacyHole;
  if (!ram.Overlaps(hole)) {
    map->push_back({ram, MemoryMapEntry::Type::kRam});
    return;
  }
  if (ram.start < hole.start)
    map->push_back({{ram.start, hole.start - ram.start}, MemoryMapEntry::Type::kRam});
  if (ram.last() > hole.last())
    map->push_back({{hole.end(), ram.last() - hole.last()}, MemoryMapEntry::Type::kRam});
}

}  // namespace

std::vector<MemoryMapEntry> MakeMemoryMap(const PlatformInfo& platform) {
  std::vector<MemoryMapEntry> map;
  for (const GuestRange& ram : platform.ram) AppendRam(ram, &map);
  map.push_back({x86_layout::kLegacyHole, MemoryMapEntry::Type::kReserved});
  if (!platform.pci.ecam.empty())
    map.push_back({platform.pci.ecam, MemoryMapEntry::Type::kReserved});
  std::ranges::sort(map, {}, [](const MemoryMapEntry& entry) { return entry.range; });
  return map;
}

Result<> LoadContext::ReserveLowMemory(std::span<const GuestRange> structures) {
  TRY(placement_.Claim(x86_layout::kLegacyHole, "the area of a PC's ROMs"));
  for (const GuestRange& range : structures)
    TRY(placement_.Claim(range, "the VMM's boot information"));
  return {};
}

Result<GuestRange> LoadContext::LoadKernel(std::span<const KernelSegment> segments) {
  const ImageFile& kernel = *request_.kernel;
  if (segments.empty()) return Fail("kernel '{}' has nothing to load; link it", kernel.name());
  // All are placed before any is read, so that a kernel that does not fit leaves RAM alone.
  Gpa first = segments[0].target.start, last = first;
  for (size_t i = 0; i < segments.size(); ++i) {
    const GuestRange target = segments[i].target;
    TRY(Within(placement_.Claim(target, fmt::format("segment {}", i)),
               [&] { return fmt::format("cannot load kernel '{}'", kernel.name()); }));
    first = std::min(first, target.start);
    last = std::max(last, target.last());
  }
  for (const KernelSegment& segment : segments) TRY(ReadSegment(segment));
  return GuestRange{first, last - first + 1};
}

Result<> LoadContext::ReadSegment(const KernelSegment& segment) {
  const std::span<std::byte> bytes = TRY(ram_.At(segment.target));
  TRY(request_.kernel->ReadAt(segment.offset, bytes.first(segment.file_size)));
  const std::span<std::byte> bss = bytes.subspan(segment.file_size);
  if (!request_.ram_is_zero && !bss.empty()) std::memset(bss.data(), 0, bss.size());
  return {};
}

Result<GuestRange> LoadContext::LoadModule(const ImageFile& file, std::string_view kind,
                                           GuestRange bounds) {
  if (file.size() == 0) return Fail("{} '{}' is empty; check how it was made", kind, file.name());
  const GuestRange range = TRY(placement_.ClaimHighest(file.size(), kPageSize, bounds,
                                                       fmt::format("{} '{}'", kind, file.name())));
  TRY(file.ReadAt(0, TRY(ram_.At(range))));
  return range;
}

Result<Gpa> LoadContext::AddString(std::string_view text, std::string_view what) {
  const GuestRange area = x86_layout::kStrings;
  const uint64_t left = area.size - (next_string_ - area.start);
  if (text.size() >= left) {
    return Fail("{} has {} characters, and there is room for {}; shorten it", what, text.size(),
                left == 0 ? 0 : left - 1);
  }
  if (const size_t zero = text.find('\0'); zero != text.npos)
    return Fail("{} has a zero byte at {}, where it would end; remove it", what, zero);
  const std::span<std::byte> target = TRY(ram_.At({next_string_, text.size() + 1}));
  if (!text.empty()) std::memcpy(target.data(), text.data(), text.size());
  target.back() = std::byte{0};
  const Gpa at = next_string_;
  next_string_ = next_string_ + target.size();
  return at;
}

}  // namespace crossbar
