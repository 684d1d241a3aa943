#include "boot/platform_info.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace crossbar {
namespace {

constexpr uint64_t kLeastWindow32 = 16 * kMiB;
constexpr uint64_t kLeastWindow64 = 4 * kGiB;
constexpr uint64_t kWindow64Alignment = kGiB;
// Keeps the banks whole multiples of a huge page.
constexpr uint64_t kHoleAlignment = 2 * kMiB;
// x86 page tables hold no more (Intel SDM volume 3A, 4.1.4).
constexpr unsigned kMostAddressBits = 52;

constexpr GuestRange kEcam{Gpa(0xe0000000), 256 * kMiB};  // room for all buses there can be
// The interrupt controllers and all that a PC has up to 4 GiB.
constexpr GuestRange kChipset{Gpa(0xfec00000), 20 * kMiB};
static_assert(kX86PciHole.Contains(kEcam) && kX86PciHole.Contains(kChipset));
static_assert(kChipset.Contains(kX86IdentityMap) && kChipset.Contains(kX86TaskState));

std::string SizeText(uint64_t bytes) {
  if (IsAligned(bytes, kGiB)) return fmt::format("{} GiB", bytes / kGiB);
  if (IsAligned(bytes, kMiB)) return fmt::format("{} MiB", bytes / kMiB);
  return fmt::format("{} KiB", bytes / kKiB);
}

// What `holes`, rounded outward, leave of `space`: ascending, disjoint, not empty.
std::vector<GuestRange> Gaps(GuestRange space, std::vector<GuestRange> holes) {
  std::ranges::sort(holes, {}, &GuestRange::start);
  std::vector<GuestRange> gaps;
  Gpa next = space.start;
  for (const GuestRange& hole : holes) {
    if (!hole.Overlaps(space)) continue;
    const Gpa start(AlignDown(hole.start.value(), kHoleAlignment));
    if (start > next) gaps.push_back({next, start - next});
    // A hole may end at 2^64: clip it before rounding up.
    const Gpa last = std::min(hole.last(), space.last());
    next = std::max(next, Gpa(AlignUp(last.value() + 1, kHoleAlignment)));
  }
  if (next <= space.last()) gaps.push_back({next, space.end() - next});
  return gaps;
}

// The part of `gap` from `floor` on that is made of whole GiB.
GuestRange Window64In(GuestRange gap, Gpa floor) {
  const uint64_t start = AlignUp(std::max(gap.start, floor).value(), kWindow64Alignment);
  const uint64_t end = AlignDown(gap.end().value(), kWindow64Alignment);
  return {Gpa(start), end > start ? end - start : 0};
}

uint64_t TotalSize(std::span<const GuestRange> ranges) {
  return std::accumulate(ranges.begin(), ranges.end(), uint64_t{0},
                         [](uint64_t sum, const GuestRange& range) { return sum + range.size; });
}

// The most RAM that leaves the least 64-bit window above it.
uint64_t MostMemory(std::span<const GuestRange> gaps) {
  for (size_t i = gaps.size(); i-- > 0;) {
    const GuestRange window = Window64In(gaps[i], Gpa(k4GiB));
    if (window.size < kLeastWindow64) continue;
    return TotalSize(gaps.first(i)) + ((window.end() - gaps[i].start) - kLeastWindow64);
  }
  return 0;
}

// Fills `gaps` from below.
std::vector<GuestRange> LayOutRam(std::span<const GuestRange> gaps, uint64_t memory) {
  std::vector<GuestRange> banks;
  for (const GuestRange& gap : gaps) {
    if (memory == 0) break;
    banks.push_back({gap.start, std::min(gap.size, memory)});
    memory -= banks.back().size;
  }
  return banks;
}

// The lowest window above `ram_end` of at least `wanted` bytes, or else the largest.
GuestRange PickWindow64(std::span<const GuestRange> gaps, Gpa ram_end, uint64_t wanted) {
  GuestRange best;
  for (const GuestRange& gap : gaps) {
    const GuestRange window = Window64In(gap, std::max(ram_end, Gpa(k4GiB)));
    if (window.size > best.size) best = window;
    if (best.size >= wanted) break;
  }
  return best;
}

Result<> CheckRequest(const X86PlatformRequest& request) {
  if (!IsAligned(request.memory_bytes, kPageSize)) {
    return Fail("{:#x} bytes of memory are not whole pages; give a multiple of 4 KiB",
                request.memory_bytes);
  }
  if (request.memory_bytes < kX86LeastMemory) {
    return Fail("{} of memory are too little to boot a kernel; give at least {}",
                SizeText(request.memory_bytes), SizeText(kX86LeastMemory));
  }
  if (request.cpus == 0) return Fail("a guest needs a CPU; give at least 1");
  if (request.cpus > kX86MostCpus) {
    return Fail("{} CPUs are more than 8-bit APIC ids can name; give at most {}", request.cpus,
                kX86MostCpus);
  }
  return {};
}

Result<GuestRange> LayOutWindow32(const X86PlatformRequest& request) {
  std::vector<GuestRange> holes = request.unusable;
  holes.insert(holes.end(), {kEcam, kChipset});
  const std::vector<GuestRange> gaps = Gaps(kX86PciHole, std::move(holes));
  const auto largest = std::ranges::max_element(gaps, {}, &GuestRange::size);
  if (largest == gaps.end() || largest->size < kLeastWindow32) {
    return Fail(
        "the host leaves no {} of {} usable for the 32-bit PCI window; pass through devices "
        "whose IOMMU translates addresses there, and whose DMA comes through to it (ACS)",
        SizeText(kLeastWindow32), kX86PciHole);
  }
  return *largest;
}

// Fills in RAM and both PCI windows.
Result<> LayOutMemory(const X86PlatformRequest& request, PlatformInfo& platform) {
  std::vector<GuestRange> holes = request.unusable;
  holes.insert(holes.end(), {kX86PciHole, kX86HyperTransport});
  const GuestRange space{Gpa(0), uint64_t{1} << platform.physical_address_bits};
  const std::vector<GuestRange> gaps = Gaps(space, holes);
  const uint64_t most = MostMemory(gaps);
  if (most < kX86LeastMemory) {
    return Fail(
        "{} physical address bits leave no room for a 64-bit PCI window; a host CPU with at "
        "least 36 is needed",
        platform.physical_address_bits);
  }
  if (gaps[0].start != Gpa(0) || gaps[0].size < kX86LeastMemory) {
    return Fail(
        "the host cannot translate guest addresses below {}, where a kernel starts; pass "
        "through other devices",
        SizeText(kX86LeastMemory));
  }
  if (request.memory_bytes > most) {
    return Fail("{} of memory and a 64-bit PCI window do not fit below 2^{}; give at most {}",
                SizeText(request.memory_bytes), platform.physical_address_bits, SizeText(most));
  }
  platform.ram = LayOutRam(gaps, request.memory_bytes);
  platform.pci.window64 = PickWindow64(gaps, platform.ram.back().end(),
                                       std::max(request.window64_bytes, kLeastWindow64));
  platform.pci.window32 = TRY(LayOutWindow32(request));
  return {};
}

}  // namespace

Result<PlatformInfo> MakeX86Platform(const X86PlatformRequest& request) {
  TRY(CheckRequest(request));
  PlatformInfo platform;
  platform.physical_address_bits = std::min(request.physical_address_bits, kMostAddressBits);
  platform.cpu_ids.resize(request.cpus);
  std::iota(platform.cpu_ids.begin(), platform.cpu_ids.end(), 0u);

  platform.pci.first_bus = 0;
  platform.pci.last_bus = request.last_bus;
  platform.pci.ecam = {kEcam.start, (request.last_bus + 1u) * kMiB};
  // All ports from 4 KiB on: a bridge's I/O window is a multiple of that, and every port of ours is
  // below.
  platform.pci.io_base = 0x1000;
  platform.pci.io_size = 0xf000;
  platform.pci.intx_gsi = {16, 17, 18, 19};
  TRY(LayOutMemory(request, platform));

  platform.serial = {.port = 0x3f8, .gsi = 4, .clock_hz = 1'843'200};
  platform.power = {.sleep_control_port = 0x600,
                    .sleep_status_port = 0x601,
                    .s5_sleep_type = 5,
                    .reset_port = 0xcf9,
                    .reset_value = 0x06};
  platform.debug_exit_port = 0xf4;
  platform.boot_marker_port = 0x80;
  platform.local_apic = Gpa(0xfee00000);
  platform.ioapic = Gpa(0xfec00000);
  platform.ioapic_pins = 24;
  return platform;
}

}  // namespace crossbar
