#include "devices/passthrough/msi.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

namespace crossbar {
namespace {

template <typename T>
T Load(std::span<const uint8_t> registers, size_t offset) {
  T value;
  std::memcpy(&value, registers.data() + offset, sizeof value);
  return value;
}

// Log2 of a number of vectors, as both fields of Message Control give it; above 5 is reserved.
uint32_t Vectors(uint32_t field) {
  return 1u << std::min(field, 5u);
}

}  // namespace

Msi::Layout::Layout(uint16_t control)
    : wide((control & PCI_MSI_FLAGS_64BIT) != 0),
      maskable((control & PCI_MSI_FLAGS_MASKBIT) != 0),
      vectors(Vectors((control & PCI_MSI_FLAGS_QMASK) >> 1)) {}

Msi::Msi(VfioBackend& backend, InterruptRouter& router, Layout layout)
    : layout_(layout), vectors_(backend, router, VFIO_PCI_MSI_IRQ_INDEX, layout.vectors) {}

void Msi::Apply(std::span<const uint8_t> registers) {
  const auto control = Load<uint16_t>(registers, PCI_MSI_FLAGS);
  const uint32_t wanted_vectors =
      std::min(Vectors((control & PCI_MSI_FLAGS_QSIZE) >> 4), layout_.vectors);
  const bool enable = (control & PCI_MSI_FLAGS_ENABLE) != 0;
  if (vectors_.enabled() && (!enable || wanted_vectors != in_use_)) vectors_.Disable();
  if (!enable) return;
  if (!vectors_.enabled()) vectors_.Enable(wanted_vectors);
  in_use_ = wanted_vectors;

  InterruptRouter::Message message;
  message.address = Load<uint32_t>(registers, PCI_MSI_ADDRESS_LO);
  if (layout_.wide)
    message.address |= uint64_t{Load<uint32_t>(registers, PCI_MSI_ADDRESS_HI)} << 32;
  const auto data = Load<uint16_t>(registers, layout_.data());
  const uint32_t mask = layout_.maskable ? Load<uint32_t>(registers, layout_.mask()) : 0;
  std::vector<std::optional<InterruptRouter::Message>> wanted(in_use_);
  for (uint32_t i = 0; i < in_use_; ++i) {
    if ((mask >> i & 1) != 0) continue;
    // The device puts the vector's number into the low bits of Message Data (7.7.1.5).
    message.data = (data & ~(in_use_ - 1)) | i;
    wanted[i] = message;
  }
  vectors_.Update(0, wanted);
}

uint32_t Msi::Pending() const {
  uint32_t pending = 0;
  for (uint32_t i = 0; i < layout_.vectors; ++i)
    if (vectors_.Pending(i)) pending |= 1u << i;
  return pending;
}

}  // namespace crossbar
