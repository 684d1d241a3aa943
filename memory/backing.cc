#include "memory/backing.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "base/sys.h"

namespace crossbar {
namespace {

// An entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).
constexpr uint64_t kPagePresent = 1ull << 63;
constexpr uint64_t kPageSwapped = 1ull << 62;
constexpr uint64_t kPageFrameMask = (1ull << 55) - 1;

void Extend(std::vector<PhysicalRange>& ranges, PhysicalRange next) {
  if (!ranges.empty() && ranges.back().start + ranges.back().size == next.start) {
    ranges.back().size += next.size;
  } else {
    ranges.push_back(next);
  }
}

}  // namespace

Result<> BarOwner::ReadBar(uint8_t, uint64_t, std::span<std::byte>) {
  return std::unexpected(sys::ErrnoError(ENOTSUP, bar_owner_name(), "forwarded DMA"));
}

Result<> BarOwner::WriteBar(uint8_t, uint64_t, std::span<const std::byte>) {
  return std::unexpected(sys::ErrnoError(ENOTSUP, bar_owner_name(), "forwarded DMA"));
}

Backing Backing::At(uint64_t offset) const {
  Backing later = *this;
  if (later.host != Hva()) later.host = later.host + offset;
  if (later.file) later.file->offset += offset;
  if (later.dma_buf) later.dma_buf->offset += offset;
  if (later.bar_physical) *later.bar_physical += offset;
  later.bar_offset += offset;
  return later;
}

Result<std::vector<PhysicalRange>> Backing::Physical(uint64_t size) const {
  if (bar_physical) return std::vector<PhysicalRange>{{*bar_physical, size}};
  if (host == Hva()) {
    return kind == Kind::kBar ? Fail("the device does not say where its BAR is on the host's bus")
                              : Fail("the memory is not mapped here");
  }
  const Fd pagemap = TRY(sys::Open("/proc/self/pagemap", O_RDONLY));
  std::vector<PhysicalRange> ranges;
  std::vector<uint64_t> entries(512);
  const uint64_t end = host.value() + size;
  for (uint64_t at = host.value(); at < end;) {
    const uint64_t pages = AlignUp(end, kPageSize) / kPageSize - at / kPageSize;
    const auto want = std::span(entries).first(std::min<uint64_t>(entries.size(), pages));
    const size_t bytes =
        TRY(sys::Pread(pagemap.get(), std::as_writable_bytes(want), at / kPageSize * 8));
    if (bytes < 8) return Fail("/proc/self/pagemap ends early");
    for (const uint64_t entry : want.first(bytes / 8)) {
      if ((entry & kPageSwapped) != 0) return Fail("a page is swapped out or on the move");
      if ((entry & kPagePresent) == 0) return Fail("a page was never touched, or is no memory");
      const uint64_t frame = entry & kPageFrameMask;
      if (frame == 0) return Fail("the kernel hides page frames from us: it takes CAP_SYS_ADMIN");
      const uint64_t next = std::min(AlignDown(at, kPageSize) + kPageSize, end);
      Extend(ranges, {frame * kPageSize + at % kPageSize, next - at});
      at = next;
    }
  }
  return ranges;
}

}  // namespace crossbar
