#include "devices/pci_config_space.h"

#include <linux/pci_regs.h>

#include <algorithm>

namespace crossbar {
namespace {

constexpr unsigned kDword = 4;

// Capabilities are dword-aligned; the low two bits of a pointer are reserved
// (PCIe 6.0, 7.5.1.1.11).
constexpr uint8_t kPointerMask = 0xfc;

constexpr uint16_t ExtendedId(uint32_t header) {
  return static_cast<uint16_t>(header & 0xffff);
}
constexpr uint8_t ExtendedVersion(uint32_t header) {
  return (header >> 16) & 0xf;
}
constexpr uint16_t ExtendedNext(uint32_t header) {
  return (header >> 20) & 0xffc;
}

}  // namespace

uint32_t PciConfigSpace::Read(uint16_t offset, unsigned size) const {
  switch (size) {
    case 1:
      return Get<uint8_t>(offset);
    case 2:
      return Get<uint16_t>(offset);
    default:
      CHECK(size == 4, "size {}", size);
      return Get<uint32_t>(offset);
  }
}

void PciConfigSpace::Write(uint16_t offset, unsigned size, uint32_t value) {
  CHECK(size <= kDword && offset + size <= kSize, "offset {:#x} size {}", offset, size);
  for (unsigned i = 0; i < size; ++i) {
    const unsigned at = offset + i;
    const unsigned written = (value >> (8 * i)) & 0xff;
    const unsigned clearable = write_one_to_clear_[at];
    const unsigned writable = writable_[at] & ~clearable;
    const unsigned kept = bytes_[at] & ~writable & ~(written & clearable);
    bytes_[at] = static_cast<uint8_t>(kept | (written & writable));
  }
}

std::vector<uint8_t> PciConfigSpace::WalkCapabilities() const {
  std::vector<uint8_t> offsets;
  if ((Get<uint16_t>(PCI_STATUS) & PCI_STATUS_CAP_LIST) == 0) return offsets;
  std::bitset<kFirstExtendedCapability / kDword> met;
  uint8_t at = Get<uint8_t>(PCI_CAPABILITY_LIST) & kPointerMask;
  while (at >= kFirstCapability && !met[at / kDword]) {
    met.set(at / kDword);
    offsets.push_back(at);
    at = Get<uint8_t>(static_cast<uint16_t>(at + PCI_CAP_LIST_NEXT)) & kPointerMask;
  }
  return offsets;
}

std::vector<uint16_t> PciConfigSpace::WalkExtendedCapabilities() const {
  std::vector<uint16_t> offsets;
  std::bitset<kSize / kDword> met;
  uint16_t at = kFirstExtendedCapability;
  while (at >= kFirstExtendedCapability && !met[at / kDword]) {
    const auto header = Get<uint32_t>(at);
    // No list, and a function that has gone, read as 0 and as all ones (PCIe 6.0, 7.6.1).
    if (header == 0 || header == ~0u) break;
    met.set(at / kDword);
    offsets.push_back(at);
    at = ExtendedNext(header);
  }
  return offsets;
}

std::vector<PciConfigSpace::Capability> PciConfigSpace::Capabilities() const {
  std::vector<Capability> list;
  for (const uint8_t offset : WalkCapabilities()) {
    const auto id = Get<uint8_t>(offset);
    if (id != 0) list.push_back({id, offset});
  }
  return list;
}

std::vector<PciConfigSpace::ExtendedCapability> PciConfigSpace::ExtendedCapabilities() const {
  std::vector<ExtendedCapability> list;
  for (const uint16_t offset : WalkExtendedCapabilities()) {
    const auto header = Get<uint32_t>(offset);
    if (ExtendedId(header) == 0) continue;
    list.push_back({ExtendedId(header), ExtendedVersion(header), offset});
  }
  return list;
}

std::optional<uint8_t> PciConfigSpace::FindCapability(uint8_t id) const {
  const std::vector<Capability> list = Capabilities();
  const auto found = std::ranges::find(list, id, &Capability::id);
  if (found == list.end()) return std::nullopt;
  return found->offset;
}

std::optional<uint16_t> PciConfigSpace::FindExtendedCapability(uint16_t id) const {
  const std::vector<ExtendedCapability> list = ExtendedCapabilities();
  const auto found = std::ranges::find(list, id, &ExtendedCapability::id);
  if (found == list.end()) return std::nullopt;
  return found->offset;
}

std::optional<uint8_t> PciConfigSpace::AddCapability(uint8_t id, uint16_t size) {
  const std::optional<uint16_t> room = Allocate(kFirstCapability, kFirstExtendedCapability, size);
  if (!room) return std::nullopt;
  const auto offset = static_cast<uint8_t>(*room);
  const std::vector<uint8_t> list = WalkCapabilities();
  if (list.empty()) {
    Set<uint8_t>(PCI_CAPABILITY_LIST, offset);
    Set<uint16_t>(PCI_STATUS, Get<uint16_t>(PCI_STATUS) | PCI_STATUS_CAP_LIST);
  } else {
    Set<uint8_t>(static_cast<uint16_t>(list.back() + PCI_CAP_LIST_NEXT), offset);
  }
  Set<uint8_t>(offset, id);
  return offset;
}

std::optional<uint16_t> PciConfigSpace::AddExtendedCapability(uint16_t id, uint8_t version,
                                                              uint16_t size) {
  const std::vector<uint16_t> list = WalkExtendedCapabilities();
  const std::optional<uint16_t> offset = Allocate(kFirstExtendedCapability, kSize, size);
  if (!offset) return std::nullopt;
  if (list.empty()) {
    // The list begins at its first dword or nowhere.
    if (*offset != kFirstExtendedCapability) return std::nullopt;
  } else {
    const uint32_t tail = Get<uint32_t>(list.back()) & 0x000fffff;
    Set<uint32_t>(list.back(), tail | uint32_t{*offset} << 20);
  }
  Set<uint32_t>(*offset, id | uint32_t{version} << 16);
  return offset;
}

std::optional<uint16_t> PciConfigSpace::Allocate(uint16_t begin, uint16_t end, uint16_t size) {
  const unsigned needed = std::max(1u, (size + kDword - 1) / kDword);
  unsigned run = 0;
  for (unsigned at = begin; at < end; at += kDword) {
    const auto offset = static_cast<uint16_t>(at);
    run = allocated_[at / kDword] || Get<uint32_t>(offset) != 0 ? 0 : run + 1;
    if (run < needed) continue;
    const unsigned first = at / kDword - (needed - 1);
    for (unsigned i = 0; i < needed; ++i) allocated_.set(first + i);
    return static_cast<uint16_t>(first * kDword);
  }
  return std::nullopt;
}

}  // namespace crossbar
