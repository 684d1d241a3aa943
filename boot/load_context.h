// LoadContext: what the format loaders share during one LoadGuest: the request, the placement of
// everything so far, and the steps that are the same for each format. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "boot/loader.h"
#include "boot/placement.h"
#include "boot/x86_layout.h"

namespace crossbar {

// One piece of a kernel: `file_size` bytes from `offset` of its file go to the start of `target`,
// the rest of which is zero.
struct KernelSegment {
  uint64_t offset = 0;
  uint64_t file_size = 0;
  GuestRange target;
};

struct MemoryMapEntry {
  // The numbers that e820, PVH and Multiboot share.
  enum class Type : uint32_t { kRam = 1, kReserved = 2 };
  GuestRange range;
  Type type = Type::kRam;
};

// RAM without the legacy hole, and what is no RAM and must not be taken for free: the hole and
// ECAM. In ascending order.
std::vector<MemoryMapEntry> MakeMemoryMap(const PlatformInfo& platform);

class LoadContext {
 public:
  struct PlacedModule {
    GuestRange range;
    Gpa string;
  };

  LoadContext(const GuestRam& ram, const PlatformInfo& platform, const LoadRequest& request)
      : ram_(ram), platform_(platform), request_(request), placement_(ram) {}

  const GuestRam& ram() const { return ram_; }
  const PlatformInfo& platform() const { return platform_; }
  const LoadRequest& request() const { return request_; }
  Placement& placement() { return placement_; }

  // Takes the legacy hole and `structures` out of what can be placed. First of all steps.
  Result<> ReserveLowMemory(std::span<const GuestRange> structures);

  // Places and loads `segments`. Returns the range from the first to the last byte.
  Result<GuestRange> LoadKernel(std::span<const KernelSegment> segments);

  // Reads one segment, already placed, and makes the rest of it zero.
  Result<> ReadSegment(const KernelSegment& segment);

  // Places `file` as high as `bounds` allows, on a page boundary, and reads it there.
  Result<GuestRange> LoadModule(const ImageFile& file, std::string_view kind, GuestRange bounds);

  // Adds `text` and its terminating zero to x86_layout::kStrings.
  Result<Gpa> AddString(std::string_view text, std::string_view what);

 private:
  const GuestRam& ram_;
  const PlatformInfo& platform_;
  const LoadRequest& request_;
  Placement placement_;
  Gpa next_string_ = x86_layout::kStrings.start;
};

// Where modules may be: RAM above the first MiB that kernels which enter in 32 bits can reach.
inline constexpr GuestRange kModuleBounds{x86_layout::kHighMemory,
                                          kX86PciHole.start - x86_layout::kHighMemory};

}  // namespace crossbar
