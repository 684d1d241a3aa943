#include "devices/passthrough/msix.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <algorithm>
#include <cstring>

#include "memory/address.h"

namespace crossbar {
namespace {

// Vector Control of each entry: masked after a reset (PCIe 6.0, 7.7.2.9).
void MaskAll(std::vector<uint8_t>& table) {
  std::ranges::fill(table, uint8_t{0});
  for (size_t entry = 0; entry < table.size(); entry += Msix::Layout::kEntrySize)
    table[entry + PCI_MSIX_ENTRY_VECTOR_CTRL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
}

bool Overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
  return a < b + b_size && b < a + a_size;
}

// `area` without [start, end), appended to `rest`.
void AppendWithout(VfioBackend::Area area, uint64_t start, uint64_t end,
                   std::vector<VfioBackend::Area>& rest) {
  const uint64_t area_end = area.offset + area.size;
  if (!Overlap(area.offset, area.size, start, end - start)) return rest.push_back(area);
  if (area.offset < start) rest.push_back({area.offset, start - area.offset});
  if (end < area_end) rest.push_back({end, area_end - end});
}

std::vector<VfioBackend::Area> Without(const std::vector<VfioBackend::Area>& areas, uint64_t offset,
                                       uint64_t size) {
  std::vector<VfioBackend::Area> rest;
  for (const VfioBackend::Area& area : areas)
    AppendWithout(area, AlignDown(offset, kPageSize), AlignUp(offset + size, kPageSize), rest);
  return rest;
}

}  // namespace

Msix::Msix(VfioBackend& backend, InterruptRouter& router, Layout layout)
    : layout_(layout),
      table_(layout.table_size()),
      vectors_(backend, router, VFIO_PCI_MSIX_IRQ_INDEX, layout.vectors) {
  MaskAll(table_);
}

bool Msix::Holds(unsigned bar, uint64_t offset, unsigned size) const {
  return (bar == layout_.table_bar &&
          Overlap(offset, size, layout_.table_offset, layout_.table_size())) ||
         (bar == layout_.pba_bar && Overlap(offset, size, layout_.pba_offset, layout_.pba_size()));
}

std::vector<VfioBackend::Area> Msix::Carve(unsigned bar, std::vector<VfioBackend::Area> areas) const {
  if (bar == layout_.table_bar)
    areas = Without(areas, layout_.table_offset, layout_.table_size());
  if (bar == layout_.pba_bar) areas = Without(areas, layout_.pba_offset, layout_.pba_size());
  return areas;
}

uint8_t Msix::ReadByte(unsigned bar, uint64_t offset) const {
  if (bar == layout_.table_bar && offset - layout_.table_offset < layout_.table_size())
    return table_[offset - layout_.table_offset];
  if (bar == layout_.pba_bar && offset - layout_.pba_offset < layout_.pba_size()) {
    const auto first = static_cast<uint32_t>((offset - layout_.pba_offset) * 8);
    uint8_t pending = 0;
    for (uint32_t bit = 0; bit < 8 && first + bit < layout_.vectors; ++bit)
      if (vectors_.Pending(first + bit)) pending |= static_cast<uint8_t>(1u << bit);
    return pending;
  }
  return 0;
}

uint64_t Msix::Read(unsigned bar, uint64_t offset, unsigned size) {
  MutexLock lock(mutex_);
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= uint64_t{ReadByte(bar, offset + i)} << (8 * i);
  return value;
}

// Accesses other than whole dwords and quadwords are undefined (7.7.2): here they write their bytes.
void Msix::Write(unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
  if (bar != layout_.table_bar) return;  // the pending bits are read-only
  MutexLock lock(mutex_);
  std::optional<uint32_t> first;
  uint32_t last = 0;
  for (unsigned i = 0; i < size; ++i) {
    const uint64_t at = offset + i - layout_.table_offset;
    if (at >= layout_.table_size()) continue;
    auto byte = static_cast<uint8_t>(value >> (8 * i));
    const uint64_t in_entry = at % Layout::kEntrySize;
    // The rest of Vector Control is reserved.
    if (in_entry == PCI_MSIX_ENTRY_VECTOR_CTRL) byte &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
    if (in_entry > PCI_MSIX_ENTRY_VECTOR_CTRL) byte = 0;
    table_[at] = byte;
    last = static_cast<uint32_t>(at / Layout::kEntrySize);
    if (!first) first = last;
  }
  if (first) Apply(*first, last - *first + 1);
}

std::optional<InterruptRouter::Message> Msix::Wanted(uint32_t vector) const {
  const uint8_t* entry = table_.data() + vector * Layout::kEntrySize;
  if (masked_ || (entry[PCI_MSIX_ENTRY_VECTOR_CTRL] & PCI_MSIX_ENTRY_CTRL_MASKBIT) != 0)
    return std::nullopt;
  InterruptRouter::Message message;
  std::memcpy(&message.address, entry + PCI_MSIX_ENTRY_LOWER_ADDR, sizeof message.address);
  std::memcpy(&message.data, entry + PCI_MSIX_ENTRY_DATA, sizeof message.data);
  return message;
}

void Msix::Apply(uint32_t first, uint32_t count) {
  if (!vectors_.enabled()) return;
  std::vector<std::optional<InterruptRouter::Message>> wanted;
  wanted.reserve(count);
  for (uint32_t i = 0; i < count; ++i) wanted.push_back(Wanted(first + i));
  vectors_.Update(first, wanted);
}

void Msix::SetControl(bool enabled, bool masked) {
  MutexLock lock(mutex_);
  if (enabled == vectors_.enabled() && masked == masked_) return;
  masked_ = masked;
  if (!enabled) return vectors_.Disable();
  if (!vectors_.enabled()) vectors_.Enable(1);
  Apply(0, layout_.vectors);
}

void Msix::Reset() {
  MutexLock lock(mutex_);
  vectors_.Disable();
  masked_ = false;
  MaskAll(table_);
}

}  // namespace crossbar
