// Backing: what stands behind a guest-physical range, and so what a memslot or a DMA domain can
// map.
//
// A plain value; it borrows every descriptor and mapping it names, which outlive the piece that
// uses it (the placement is taken away first: G11). A DMA domain picks the handle it can use: the
// host address (type1), file and offset (vfio-user, iommufd for RAM) or the dma-buf (iommufd for a
// BAR), and may say no.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/address.h"

namespace crossbar {

// The device a BAR piece belongs to, as memory/ sees it. devices/ implements it. AddressSpace asks
// it for its name only; who finds a piece may call the rest.
class BarOwner {
 public:
  virtual ~BarOwner() = default;
  // For people: "0000:01:00.0". Any thread, under AddressSpace's locks: takes none itself.
  virtual std::string bar_owner_name() const = 0;
  // KVM could not reach the memory behind some slot, and then the guest came to this device's `address`: it is lost,
  // decode went off behind our back, or it is well and another slot was meant. Called on a vCPU's thread with no lock
  // held.
  virtual void OnVanished(Gpa address) = 0;
  // A peer's DMA that the VMM carries out for it, because the peer cannot reach the BAR itself: `data` at
  // `offset` of `bar`. Called while a PieceTable::Pin holds the piece, which its zap waits for: takes no
  // lock that is held over a zap (a function's), and ends well within the zap deadline. Any thread.
  // Default: ENOTSUP.
  virtual Result<> ReadBar(uint8_t bar, uint64_t offset, std::span<std::byte> data);
  virtual Result<> WriteBar(uint8_t bar, uint64_t offset, std::span<const std::byte> data);
  // The most bytes of one access. Whoever copies more pins the piece anew for each such part, so that a zap waits for one.
  // Constant.
  virtual uint64_t largest_access() const { return UINT64_MAX; }
};

// Host-physical memory; for diagnostics.
struct PhysicalRange {
  uint64_t start = 0;
  uint64_t size = 0;
  bool operator==(const PhysicalRange&) const = default;
};

struct Backing {
  enum class Kind : uint8_t { kRam, kBar };
  // A file or dma-buf and where in it the range starts.
  struct Handle {
    int fd = -1;
    uint64_t offset = 0;
  };

  Kind kind = Kind::kRam;
  bool writable = true;
  // Where the range lies in our address space. 0: nowhere, so it gets no memslot and can only be a
  // target of domains that take a handle or forward (a vfio-user BAR area without a file).
  Hva host;
  std::optional<Handle> file;     // the memfd, or the device region's file
  std::optional<Handle> dma_buf;  // of a BAR piece

  // The rest describes a BAR piece.
  BarOwner* owner = nullptr;
  uint8_t bar = 0;
  uint64_t bar_offset = 0;            // of the piece within the BAR
  std::optional<uint64_t>
      bar_physical;                   // host-physical address of the piece, from sysfs `resource`
  bool peers_may_map = true;          // p2p=off clears it: no DMA domain gets it

  // The backing of what lies `offset` bytes further on.
  Backing At(uint64_t offset) const;

  // The host-physical ranges of exactly the first `size` bytes: a BAR's from its resource, that of
  // RAM, and of a BAR that is memory (a memfd), from /proc/self/pagemap. Error: why they cannot be
  // told (no CAP_SYS_ADMIN, never touched, swapped out, neither resource nor memory).
  Result<std::vector<PhysicalRange>> Physical(uint64_t size) const;
};

}  // namespace crossbar
