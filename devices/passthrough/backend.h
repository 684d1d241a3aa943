// VfioBackend: one passed-through PCI device as its driver offers it: regions, interrupts, reset, in
// the terms of <linux/vfio.h>, which the kernel's VFIO and the vfio-user protocol share.
//
// Made by a backend's factory (devices/vfio/, devices/vfio_user/), owned by one PassthroughFunction,
// which calls it from vCPU threads, its watcher and the main thread. Region accesses may come from
// several threads at once; everything else comes one call at a time, under the function's lock. No
// call runs under AddressSpace's lock, so an implementation may wait for a device server here.
// What a server sends is checked by the implementation: sizes and areas below can be trusted.
//
// Config space is region VFIO_PCI_CONFIG_REGION_INDEX. DMA is not here: a backend registers its
// DmaDomain with AddressSpace itself, since devices may share one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/backing.h"
#include "memory/memslot_table.h"

namespace crossbar {

class AddressSpace;

class VfioBackend {
 public:
  // Part of a region, from its start; whole pages.
  struct Area {
    uint64_t offset = 0;
    uint64_t size = 0;
    bool operator==(const Area&) const = default;
  };
  struct Region {
    uint64_t size = 0;  // 0: the device has no such region
    bool readable = false;
    bool writable = false;
    std::vector<Area> mappable;  // for MapArea; ascending, disjoint, within the region
  };
  struct Interrupt {
    uint32_t count = 0;      // vectors; 0: the device has none of this kind
    bool resizable = false;  // more vectors may be set while some are in use
  };

  virtual ~VfioBackend() = default;

  // For people: "0000:01:00.0", "vfio-user PATH".
  virtual std::string name() const = 0;

  // `index` is a VFIO_PCI_*_REGION_INDEX or VFIO_PCI_*_IRQ_INDEX. Constant over the backend's life.
  virtual Region region(unsigned index) const = 0;
  virtual Interrupt interrupt(unsigned index) const = 0;
  virtual bool can_reset() const = 0;

  // All of `data`, or an error: EIO where memory decode is off or the device is gone. A size of 1, 2,
  // 4 or 8 that is naturally aligned is one access of that size on the bus.
  virtual Result<> Read(unsigned region, uint64_t offset, std::span<std::byte> data) = 0;
  virtual Result<> Write(unsigned region, uint64_t offset, std::span<const std::byte> data) = 0;

  // The most bytes that one call to the device's server carries; a larger access is several calls, each with its own time
  // limit. Constant over the backend's life.
  virtual uint64_t largest_access() const { return UINT64_MAX; }

  // Maps one mappable area of a BAR and says what stands behind it: host address, file or dma-buf,
  // physical address where it is known. The caller fills in owner, bar and bar_offset. The mapping is
  // the backend's and lives as long as it does. Called once for each area. Error: the area is trapped.
  // With no host address it is trapped too, and still a target of DMA that the VMM forwards by Read and
  // Write (a vfio-user device's registers).
  virtual Result<Backing> MapArea(unsigned region, const Area& area) = 0;

  // Which guest writes the device takes as eventfds, `address` counting from the region's start.
  virtual std::vector<IoEvent> IoEvents(unsigned region) = 0;

  // VFIO_DEVICE_SET_IRQS: makes vectors from `start` signal `eventfds` (-1: none), borrowed until they
  // are replaced or disabled. Sets up the kind of interrupt where it was off.
  virtual Result<> SetInterrupts(unsigned index, uint32_t start, std::span<const int> eventfds) = 0;
  virtual Result<> DisableInterrupts(unsigned index) = 0;

  // INTx is masked by its own interrupt until unmasked: by this call, or by `eventfd` if the backend
  // can wait for it (false: it cannot; -1 ends it).
  virtual Result<> UnmaskIntx() = 0;
  virtual Result<bool> SetIntxUnmaskEvent(int eventfd) = 0;

  // Only where can_reset. May take seconds.
  virtual Result<> Reset() = 0;

  // Readable once the device is lost without having said so by its ERR or REQ interrupt (its server
  // hung up); -1 where that cannot happen.
  virtual int lost_event() const = 0;

  // Makes all guest memory reachable for the device's DMA, now and as it changes, where that is the
  // device's own to do (vfio-user; groups of the kernel's VFIO join as a whole, devices/vfio/host.h).
  // `space` outlives the backend. Error: RAM was refused.
  virtual Result<> JoinBus(AddressSpace&) { return {}; }
  // The device must start no DMA any more, as far as its driver can see to that; its end of being an
  // initiator. Domains that are its alone are withdrawn. Afterwards only destruction is of use.
  virtual void LeaveBus() = 0;
};

}  // namespace crossbar
