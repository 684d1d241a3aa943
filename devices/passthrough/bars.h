// Bars: the base address registers of a passed-through device, and what they place: memslots and DMA
// in the AddressSpace, traps in the host bridge's windows. The registers are virtual: what the guest
// writes never reaches the device, whose own BARs are where the host put them.
//
// Owned by a PassthroughFunction, under its lock. Layouts: PCIe 6.0, 7.5.1.2.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "devices/passthrough/backend.h"
#include "devices/passthrough/msix.h"
#include "devices/pci_root_port.h"
#include "devices/pci_window.h"
#include "memory/address_space.h"

namespace crossbar {

class Bars {
 public:
  static constexpr unsigned kRom = 6;  // VFIO_PCI_ROM_REGION_INDEX
  static constexpr unsigned kCount = 7;

  enum class Kind : uint8_t {
    kNone,
    kPorts,
    kMemory32,
    kMemory64,
    kUpperHalf,  // the register after that of a 64-bit BAR
    kRom,
  };

  // Where BARs may be. A BAR that is programmed to lie elsewhere is not reached by anybody.
  struct Windows {
    std::vector<std::shared_ptr<PciWindow>> memory;
    std::shared_ptr<PciWindow> ports;  // may be null
    const PciRootPort* above = nullptr;  // lets through whole BARs only; null: the device is on the root bus
  };
  // What the device answers at the moment.
  struct Decode {
    bool memory = false;
    bool ports = false;
    bool operator==(const Decode&) const = default;
  };
  using Zapped = AddressSpace::Zapped;
  struct Options {
    bool peers_may_map = true;
    uint64_t rom_size = 0;  // 0: no expansion ROM
  };

  Bars(AddressSpace& space, Windows windows) : space_(space), windows_(std::move(windows)) {}

  // Learns what BARs `backend` has and maps what can be mapped of them; `msix`, if there, keeps the
  // pages of its structures. `owner` and `backend` outlive this. Errors: a BAR makes no sense (its size
  // is no power of two); where mapping an area fails it is trapped, with a warning.
  Result<> Discover(VfioBackend& backend, BarOwner& owner, const Msix* msix, Options options);
  // Who answers a trapped access to `bar`; before the first Place.
  void SetTrap(unsigned bar, std::shared_ptr<BusDevice> trap);

  Kind kind(unsigned bar) const { return bars_[bar].kind; }
  uint64_t size(unsigned bar) const { return bars_[bar].size; }

  // Config registers: `offset` is that of one of the six BARs or of the ROM's.
  static bool Holds(uint16_t offset);
  uint32_t Read(uint16_t offset, unsigned size) const;
  void Write(uint16_t offset, unsigned size, uint32_t value);
  // All registers as after a reset. Nothing is placed then.
  void Reset();

  // G1: brings what is placed into line with the registers, with the port above and with `decode`, which
  // the hardware does already. What stays where it is costs nothing (G9); what moves or is no longer
  // reached leaves its old place first, all in one zap. A BAR whose memory cannot be placed is trapped.
  // `zapped` is as it was where nothing left.
  void Place(Decode decode, Zapped& zapped);
  // G2: takes every memory BAR away, all in one zap. Costs nothing where nothing is placed.
  void Zap(Zapped& zapped);

 private:
  struct Piece {
    uint64_t offset = 0;
    uint64_t size = 0;
    Backing backing;
  };
  struct Bar {
    Kind kind = Kind::kNone;
    uint64_t size = 0;
    uint32_t type = 0;  // the read-only low bits of the register
    std::vector<Piece> pieces;
    std::vector<IoEvent> events;
    std::shared_ptr<BusDevice> trap;
    // Where it is placed, and by what.
    std::optional<uint64_t> place;
    PciWindow* window = nullptr;
    AddressSpace::Mapping mapping;  // of memory, also where all of it is trapped
  };

  Result<> DiscoverBar(unsigned index, uint32_t register_value);
  void MapPieces(unsigned index, BarOwner& owner, const Msix* msix, bool peers_may_map);
  // Where the guest wants the BAR, if it can be there.
  std::optional<uint64_t> Wanted(unsigned index, Decode decode, PciWindow*& window) const;
  bool PassesPort(Kind kind, uint64_t start, uint64_t size) const;
  void ZapMappings(std::span<Bar* const> bars, Zapped& zapped);
  void Settle(Bar& bar, uint64_t start, PciWindow* window);
  AddressSpace::Mapping Map(const Bar& bar, uint64_t start);
  void Withdraw(Bar& bar);

  AddressSpace& space_;
  const Windows windows_;
  VfioBackend* backend_ = nullptr;
  std::array<Bar, kCount> bars_;
  std::array<uint32_t, kCount> registers_ = {};
};

}  // namespace crossbar
