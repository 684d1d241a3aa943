#include "devices/passthrough/bars.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace crossbar {
namespace {

static_assert(Bars::kRom == VFIO_PCI_ROM_REGION_INDEX);

// The least a BAR can be, as its low bits say something else (7.5.1.2.1, 7.5.1.2.4).
constexpr uint64_t kLeastPorts = 4;
constexpr uint64_t kLeastMemory = 16;
constexpr uint64_t kLeastRom = 2048;

constexpr unsigned IndexOf(uint16_t offset) {
  return offset >= PCI_ROM_ADDRESS ? Bars::kRom : (offset - PCI_BASE_ADDRESS_0) / 4u;
}

}  // namespace

bool Bars::Holds(uint16_t offset) {
  return (offset >= PCI_BASE_ADDRESS_0 && offset < PCI_BASE_ADDRESS_5 + 4) ||
         (offset >= PCI_ROM_ADDRESS && offset < PCI_ROM_ADDRESS + 4);
}

Result<> Bars::DiscoverBar(unsigned index, uint32_t value) {
  Bar& bar = bars_[index];
  const uint64_t size = backend_->region(index).size;
  if (size == 0 || bar.kind == Kind::kUpperHalf) return {};
  const bool ports = (value & PCI_BASE_ADDRESS_SPACE_IO) != 0;
  const uint64_t least = ports ? kLeastPorts : kLeastMemory;
  if (!std::has_single_bit(size) || size < least)
    return Fail("BAR {} has a size of {:#x}, which no BAR can have", index, size);
  bar.size = size;
  if (ports) {
    bar.kind = Kind::kPorts;
    bar.type = PCI_BASE_ADDRESS_SPACE_IO;
    return {};
  }
  bar.type = value & 0xf;
  bar.kind = Kind::kMemory32;
  if ((value & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64) {
    if (index == 5) return Fail("BAR 5 says that it is a 64-bit BAR, but it is the last");
    bar.kind = Kind::kMemory64;
    bars_[index + 1].kind = Kind::kUpperHalf;
  } else if (size > 2 * kGiB) {
    return Fail("BAR {} has a size of {:#x}, too large for a 32-bit BAR", index, size);
  }
  return {};
}

void Bars::MapPieces(unsigned index, BarOwner& owner, const Msix* msix, bool peers_may_map) {
  Bar& bar = bars_[index];
  // A BAR within a page shares it with others: trapped.
  if (bar.size < kPageSize) return;
  std::vector<VfioBackend::Area> areas = backend_->region(index).mappable;
  if (msix != nullptr) areas = msix->Carve(index, std::move(areas));
  for (const VfioBackend::Area& area : areas) {
    Result<Backing> backing = backend_->MapArea(index, area);
    if (!backing) {
      LogWarning("{}: {:#x} bytes of BAR {} are trapped and no target of P2P: {}",
                 backend_->name(), area.size, index, backing.error().message());
      continue;
    }
    backing->kind = Backing::Kind::kBar;
    backing->owner = &owner;
    backing->bar = static_cast<uint8_t>(index);
    backing->bar_offset = area.offset;
    backing->peers_may_map = peers_may_map;
    bar.pieces.push_back({area.offset, area.size, *std::move(backing)});
  }
}

Result<> Bars::Discover(VfioBackend& backend, BarOwner& owner, const Msix* msix, Options options) {
  backend_ = &backend;
  std::array<std::byte, 24> raw;
  TRY(backend.Read(VFIO_PCI_CONFIG_REGION_INDEX, PCI_BASE_ADDRESS_0, raw));
  const auto values = std::bit_cast<std::array<uint32_t, 6>>(raw);
  for (unsigned i = 0; i < values.size(); ++i) TRY(DiscoverBar(i, values[i]));
  if (options.rom_size != 0) {
    bars_[kRom].kind = Kind::kRom;
    bars_[kRom].size = std::max(std::bit_ceil(options.rom_size), kLeastRom);
  }
  for (unsigned i = 0; i < kRom; ++i) {
    if (bars_[i].kind != Kind::kMemory32 && bars_[i].kind != Kind::kMemory64) continue;
    MapPieces(i, owner, msix, options.peers_may_map);
    bars_[i].events = backend.IoEvents(i);
  }
  Reset();
  return {};
}

void Bars::SetTrap(unsigned bar, std::shared_ptr<BusDevice> trap) {
  bars_[bar].trap = std::move(trap);
}

uint32_t Bars::Read(uint16_t offset, unsigned size) const {
  const uint32_t value = registers_[IndexOf(offset)] >> (8 * (offset % 4u));
  return value & static_cast<uint32_t>(AllOnes(size));
}

void Bars::Write(uint16_t offset, unsigned size, uint32_t value) {
  const unsigned index = IndexOf(offset);
  const unsigned shift = 8 * (offset % 4u);
  const auto bytes = static_cast<uint32_t>(AllOnes(size)) << shift;
  const uint32_t merged = (registers_[index] & ~bytes) | ((value << shift) & bytes);
  const Bar& bar = bars_[index];
  switch (bar.kind) {
    case Kind::kNone: break;
    case Kind::kPorts:
    case Kind::kMemory32:
    case Kind::kMemory64:
      registers_[index] = (merged & ~static_cast<uint32_t>(bar.size - 1)) | bar.type;
      break;
    case Kind::kUpperHalf:
      registers_[index] = merged & ~static_cast<uint32_t>((bars_[index - 1].size - 1) >> 32);
      break;
    case Kind::kRom:
      registers_[index] = merged & (~static_cast<uint32_t>(bar.size - 1) | PCI_ROM_ADDRESS_ENABLE);
      break;
  }
}

void Bars::Reset() {
  for (unsigned i = 0; i < kCount; ++i) registers_[i] = bars_[i].type;
}

bool Bars::PassesPort(Kind kind, uint64_t start, uint64_t size) const {
  if (windows_.above == nullptr) return true;
  const PciRootPort::Forwarding forwarding = windows_.above->forwarding();
  if (kind == Kind::kPorts) return forwarding.ports.Contains(start, size);
  return forwarding.memory.Contains(start, size) || forwarding.prefetchable.Contains(start, size);
}

std::optional<uint64_t> Bars::Wanted(unsigned index, Decode decode, PciWindow*& window) const {
  const Bar& bar = bars_[index];
  uint64_t start = registers_[index] & ~static_cast<uint32_t>(bar.size - 1);
  switch (bar.kind) {
    case Kind::kNone:
    case Kind::kUpperHalf: return std::nullopt;
    case Kind::kPorts:
      window = windows_.ports.get();
      if (!decode.ports || window == nullptr || !window->Contains(start, bar.size) ||
          !PassesPort(bar.kind, start, bar.size))
        return std::nullopt;
      return start;
    case Kind::kRom:
      if ((registers_[index] & PCI_ROM_ADDRESS_ENABLE) == 0) return std::nullopt;
      break;
    case Kind::kMemory64: start |= uint64_t{registers_[index + 1]} << 32; break;
    case Kind::kMemory32: break;
  }
  if (!decode.memory || !PassesPort(bar.kind, start, bar.size)) return std::nullopt;
  for (const std::shared_ptr<PciWindow>& candidate : windows_.memory) {
    if (!candidate->Contains(start, bar.size)) continue;
    window = candidate.get();
    return start;
  }
  return std::nullopt;
}

void Bars::Settle(Bar& bar, uint64_t start, PciWindow* window) {
  CHECK(bar.trap != nullptr && window != nullptr);
  bar.place = start;
  bar.window = window;
  if (bar.kind == Kind::kPorts) {
    window->Add(start, bar.size, bar.trap);
    return;
  }
  bar.mapping = Map(bar, start);
  window->Add(start, bar.size, bar.trap, bar.mapping.order());
}

AddressSpace::Mapping Bars::Map(const Bar& bar, uint64_t start) {
  AddressSpace::Placement placement;
  placement.whole = {Gpa(start), bar.size};
  for (const Piece& piece : bar.pieces)
    placement.pieces.push_back({{Gpa(start) + piece.offset, piece.size}, piece.backing});
  for (IoEvent event : bar.events) {
    event.address = Gpa(start) + event.address.value();
    placement.events.push_back(event);
  }
  Result<AddressSpace::Mapping> mapping = space_.MapOrClaim(std::move(placement));
  if (mapping) return *std::move(mapping);
  static RateLimit limit;
  LogGuest(limit, "{}: BAR {} at {:#x} is trapped and no target of P2P: {}", backend_->name(),
           static_cast<unsigned>(&bar - bars_.data()), start, mapping.error().message());
  // Its addresses are its own all the same.
  Result<AddressSpace::Mapping> trapped =
      space_.MapOrClaim({.pieces = {}, .events = {}, .whole = {Gpa(start), bar.size}});
  CHECK(trapped, "{}", trapped.error().message());
  return *std::move(trapped);
}

void Bars::Withdraw(Bar& bar) {
  if (!bar.place) return;
  bar.window->Remove(bar.trap.get());
  bar.place.reset();
}

void Bars::ZapMappings(std::span<Bar* const> bars, Zapped& zapped) {
  std::vector<AddressSpace::Mapping*> mappings;
  for (Bar* const bar : bars) {
    if (!bar->mapping.held()) continue;
    mappings.push_back(&bar->mapping);
  }
  if (!mappings.empty()) zapped = space_.Zap(mappings);
}

void Bars::Place(Decode decode, Zapped& zapped) {
  std::array<std::optional<uint64_t>, kCount> wanted;
  std::array<PciWindow*, kCount> windows = {};
  std::vector<Bar*> leaving;
  for (unsigned i = 0; i < kCount; ++i) {
    wanted[i] = Wanted(i, decode, windows[i]);
    if (bars_[i].place && bars_[i].place != wanted[i]) leaving.push_back(&bars_[i]);
  }
  ZapMappings(leaving, zapped);
  for (Bar* const bar : leaving) Withdraw(*bar);
  for (unsigned i = 0; i < kCount; ++i)
    if (wanted[i] && !bars_[i].place) Settle(bars_[i], *wanted[i], windows[i]);
}

void Bars::Zap(Zapped& zapped) {
  std::vector<Bar*> all;
  for (Bar& bar : bars_) all.push_back(&bar);
  ZapMappings(all, zapped);
  // Ports stay: no cause that only ends memory decode may interrupt them.
  for (Bar& bar : bars_)
    if (bar.kind != Kind::kPorts) Withdraw(bar);
}

}  // namespace crossbar
