#include "devices/passthrough/config_view.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <vector>

#include "devices/bus.h"

namespace crossbar {
namespace {

constexpr unsigned kConfig = VFIO_PCI_CONFIG_REGION_INDEX;
constexpr uint16_t kSize = PciConfigSpace::kSize;

// Capabilities that say things which are not so for the guest.
constexpr std::array kHidden = {
    uint8_t{PCI_CAP_ID_AGP},    uint8_t{PCI_CAP_ID_SLOTID},  // of the host's slot
    uint8_t{PCI_CAP_ID_CHSWP},  uint8_t{PCI_CAP_ID_SHPC},    // and of its hot-plug
    uint8_t{PCI_CAP_ID_HT},     uint8_t{PCI_CAP_ID_EA},      // BARs elsewhere than in the registers
};
// Not in the <linux/pci_regs.h> of Linux 6.1.
constexpr uint16_t kExtCapResizableVfBar = 0x24;
constexpr std::array kHiddenExtended = {
    uint16_t{PCI_EXT_CAP_ID_ARI},    // function numbers are given anew
    uint16_t{PCI_EXT_CAP_ID_ACS},    // of the host's path, which the guest does not see
    uint16_t{PCI_EXT_CAP_ID_ATS},    // translations are the host IOMMU's
    uint16_t{PCI_EXT_CAP_ID_PRI},    uint16_t{PCI_EXT_CAP_ID_PASID},
    uint16_t{PCI_EXT_CAP_ID_SRIOV},  // VFs would be the host's
    uint16_t{PCI_EXT_CAP_ID_MRIOV},
    uint16_t{PCI_EXT_CAP_ID_REBAR},  // sizes are fixed while mapped
    kExtCapResizableVfBar,
    uint16_t{PCI_EXT_CAP_ID_PTM},    uint16_t{PCI_EXT_CAP_ID_MFVC},
};

constexpr uint32_t ExtendedHeader(uint16_t id, uint8_t version, uint16_t next) {
  return id | uint32_t{version} << 16 | uint32_t{next} << 20;
}

}  // namespace

Result<ConfigView> ConfigView::Create(VfioBackend& backend) {
  ConfigView view(backend);
  TRY(view.Load());
  view.HideCapabilities();
  view.HideExtendedCapabilities();
  view.KeepMsi();
  view.KeepMsix();
  view.initial_ = view.view_;
  if (const uint16_t control = view.capabilities_.power + PCI_PM_CTRL; view.capabilities_.power != 0)
    view.initial_.Set<uint16_t>(control, view.initial_.Get<uint16_t>(control) &
                                             static_cast<uint16_t>(~PCI_PM_CTRL_STATE_MASK));  // D0
  return view;
}

Result<> ConfigView::Load() {
  const auto size = static_cast<uint16_t>(std::min<uint64_t>(backend_->region(kConfig).size, kSize));
  if (size < 64) return Fail("{} has no PCI config space", backend_->name());
  std::vector<std::byte> bytes(size);
  TRY(backend_->Read(kConfig, 0, bytes));
  for (uint16_t i = 0; i < size; ++i) view_.Set<uint8_t>(i, static_cast<uint8_t>(bytes[i]));
  const uint8_t type = view_.Get<uint8_t>(PCI_HEADER_TYPE) & 0x7f;
  if (type != PCI_HEADER_TYPE_NORMAL)
    return Fail("{} is a bridge (header type {}); only endpoints can be passed through",
                backend_->name(), type);
  capabilities_ = {view_.FindCapability(PCI_CAP_ID_PM).value_or(0),
                   view_.FindCapability(PCI_CAP_ID_MSI).value_or(0),
                   view_.FindCapability(PCI_CAP_ID_MSIX).value_or(0),
                   view_.FindCapability(PCI_CAP_ID_EXP).value_or(0),
                   view_.FindCapability(PCI_CAP_ID_AF).value_or(0),
                   view_.FindExtendedCapability(PCI_EXT_CAP_ID_ERR).value_or(0)};
  // Reset writes its registers, which a server may have put where config space ends.
  if (capabilities_.errors + PCI_ERR_CAP + 4 > size) capabilities_.errors = 0;
  // A capability that the driver gives no interrupts for does not work.
  if (backend_->interrupt(VFIO_PCI_MSI_IRQ_INDEX).count == 0) capabilities_.msi = 0;
  if (backend_->interrupt(VFIO_PCI_MSIX_IRQ_INDEX).count == 0) capabilities_.msix = 0;
  return {};
}

void ConfigView::Keep(uint16_t offset, uint16_t size) {
  for (uint16_t i = 0; i < size && offset + i < kSize; ++i) kept_.set(size_t{offset} + i);
}

void ConfigView::KeepByte(uint16_t offset, uint8_t value) {
  view_.Set<uint8_t>(offset, value);
  Keep(offset, 1);
}

void ConfigView::HideCapabilities() {
  uint16_t link = PCI_CAPABILITY_LIST;
  const auto dead = [&](const PciConfigSpace::Capability& found) {
    return std::ranges::find(kHidden, found.id) != kHidden.end() ||
           (found.id == PCI_CAP_ID_MSI && found.offset != capabilities_.msi) ||
           (found.id == PCI_CAP_ID_MSIX && found.offset != capabilities_.msix);
  };
  for (const PciConfigSpace::Capability& found : view_.Capabilities()) {
    if (dead(found)) continue;
    KeepByte(link, found.offset);
    link = found.offset + PCI_CAP_LIST_NEXT;
  }
  KeepByte(link, 0);
}

void ConfigView::HideExtendedCapabilities() {
  if (view_.Get<uint32_t>(PciConfigSpace::kFirstExtendedCapability) == 0) return;
  const auto relink = [&](const PciConfigSpace::ExtendedCapability& found, uint16_t next) {
    view_.Set<uint32_t>(found.offset, ExtendedHeader(found.id, found.version, next));
    Keep(found.offset, 4);
  };
  // The first cannot be left out, as lists start at 0x100: it becomes a null capability.
  PciConfigSpace::ExtendedCapability last{0, 0, PciConfigSpace::kFirstExtendedCapability};
  for (const PciConfigSpace::ExtendedCapability& found : view_.ExtendedCapabilities()) {
    if (std::ranges::find(kHiddenExtended, found.id) != kHiddenExtended.end()) continue;
    if (found.offset != last.offset) relink(last, found.offset);
    last = found;
  }
  relink(last, 0);
}

std::optional<Msi::Layout> ConfigView::msi_layout() const {
  if (capabilities_.msi == 0) return std::nullopt;
  Msi::Layout layout(view_.Get<uint16_t>(capabilities_.msi + PCI_MSI_FLAGS));
  if (capabilities_.msi + layout.size() > PciConfigSpace::kFirstExtendedCapability)
    return std::nullopt;
  layout.vectors = std::min(layout.vectors, backend_->interrupt(VFIO_PCI_MSI_IRQ_INDEX).count);
  return layout;
}

void ConfigView::KeepMsi() {
  const std::optional<Msi::Layout> layout = msi_layout();
  if (!layout) return;
  const uint16_t at = capabilities_.msi;
  Keep(at, layout->size());
  auto control = view_.Get<uint16_t>(at + PCI_MSI_FLAGS);
  control &= static_cast<uint16_t>(~(PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE));
  view_.Set<uint16_t>(at + PCI_MSI_FLAGS, control);
  view_.SetWritable<uint16_t>(at + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE);
  view_.Set<uint32_t>(at + PCI_MSI_ADDRESS_LO, 0);
  view_.SetWritable<uint32_t>(at + PCI_MSI_ADDRESS_LO, ~3u);
  if (layout->wide) {
    view_.Set<uint32_t>(at + PCI_MSI_ADDRESS_HI, 0);
    view_.SetWritable<uint32_t>(at + PCI_MSI_ADDRESS_HI, ~0u);
  }
  view_.Set<uint16_t>(at + layout->data(), 0);
  view_.SetWritable<uint16_t>(at + layout->data(), 0xffff);
  if (!layout->maskable) return;
  view_.Set<uint32_t>(at + layout->mask(), 0);
  view_.SetWritable<uint32_t>(at + layout->mask(), ~0u);
  view_.Set<uint32_t>(at + layout->pending(), 0);
}

std::optional<Msix::Layout> ConfigView::msix_layout() const {
  if (capabilities_.msix == 0) return std::nullopt;
  const uint16_t at = capabilities_.msix;
  const auto table = view_.Get<uint32_t>(at + PCI_MSIX_TABLE);
  const auto pba = view_.Get<uint32_t>(at + PCI_MSIX_PBA);
  Msix::Layout layout;
  layout.table_bar = table & PCI_MSIX_TABLE_BIR;
  layout.table_offset = table & PCI_MSIX_TABLE_OFFSET;
  layout.pba_bar = pba & PCI_MSIX_PBA_BIR;
  layout.pba_offset = pba & PCI_MSIX_PBA_OFFSET;
  layout.vectors = (view_.Get<uint16_t>(at + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_QSIZE) + 1u;
  return layout;
}

void ConfigView::KeepMsix() {
  if (capabilities_.msix == 0) return;
  const uint16_t control = capabilities_.msix + PCI_MSIX_FLAGS;
  Keep(control, 2);
  view_.Set<uint16_t>(control, view_.Get<uint16_t>(control) & PCI_MSIX_FLAGS_QSIZE);
  view_.SetWritable<uint16_t>(control, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
}

bool ConfigView::has_express_flr() const {
  return capabilities_.express != 0 &&
         (view_.Get<uint32_t>(capabilities_.express + PCI_EXP_DEVCAP) & PCI_EXP_DEVCAP_FLR) != 0;
}

bool ConfigView::has_advanced_flr() const {
  return capabilities_.advanced_features != 0 &&
         (view_.Get<uint8_t>(capabilities_.advanced_features + PCI_AF_CAP) & PCI_AF_CAP_FLR) != 0;
}

uint32_t ConfigView::Read(uint16_t offset, unsigned size) const {
  unsigned kept = 0;
  for (unsigned i = 0; i < size; ++i) kept += kept_[offset + i];
  if (kept == size) return view_.Read(offset, size);

  std::array<std::byte, 4> bytes;
  bytes.fill(std::byte{0xff});
  const uint64_t readable = backend_->region(kConfig).size;
  if (offset + size <= readable &&
      !backend_->Read(kConfig, offset, std::span(bytes).first(size)))
    bytes.fill(std::byte{0xff});
  uint32_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const auto byte = kept_[offset + i] ? static_cast<uint8_t>(view_.Read(static_cast<uint16_t>(offset + i), 1))
                                        : static_cast<uint8_t>(bytes[i]);
    value |= uint32_t{byte} << (8 * i);
  }
  // Accesses are aligned: none has COMMAND's low byte elsewhere than at its start.
  if (offset == PCI_COMMAND && holds_master_ && wants_master_) value |= PCI_COMMAND_MASTER;
  return value;
}

Result<> ConfigView::Write(uint16_t offset, unsigned size, uint32_t value) {
  if (offset == PCI_COMMAND && holds_master_) {
    wants_master_ = (value & PCI_COMMAND_MASTER) != 0;
    value &= ~uint32_t{PCI_COMMAND_MASTER};
  }
  view_.Write(offset, size, value);
  if (offset + size > backend_->region(kConfig).size) return {};
  // The device's bytes, in the largest aligned parts that hold no byte of ours.
  for (unsigned done = 0; done < size;) {
    unsigned part = size - done;
    const auto unfit = [&] {
      if (!IsAligned(offset + done, part) || (part & (part - 1)) != 0) return true;
      for (unsigned i = 0; i < part; ++i)
        if (kept_[offset + done + i]) return true;
      return false;
    };
    while (part > 0 && unfit()) --part;
    if (part != 0) {
      std::array<std::byte, 4> bytes;
      for (unsigned i = 0; i < part; ++i)
        bytes[i] = static_cast<std::byte>(value >> (8 * (done + i)));
      TRY(backend_->Write(kConfig, offset + done, std::span(bytes).first(part)));
    }
    done += std::max(part, 1u);
  }
  return {};
}

Result<> ConfigView::Reset(ResetKind kind) {
  view_ = initial_;
  const Capabilities& at = capabilities_;
  if (at.power != 0)
    TRY(PutBack(at.power + PCI_PM_CTRL, 2, PCI_PM_CTRL_STATE_MASK | PCI_PM_CTRL_PME_ENABLE));
  if (at.express != 0) {
    // A function's own reset leaves the payload's size (PCIe 6.0, 6.6.2).
    const uint32_t left = kind == ResetKind::kFunction ? PCI_EXP_DEVCTL_PAYLOAD : 0;
    TRY(PutBack(at.express + PCI_EXP_DEVCTL, 2, 0xffff & ~left));
    // The second came with version 2 of the capability.
    if ((initial_.Get<uint16_t>(at.express + PCI_EXP_FLAGS) & PCI_EXP_FLAGS_VERS) >= 2)
      TRY(PutBack(at.express + PCI_EXP_DEVCTL2, 2, 0xffff));
  }
  if (at.errors == 0 || kind != ResetKind::kPower) return {};  // those are sticky (7.8.4)
  for (const int mask : {PCI_ERR_UNCOR_MASK, PCI_ERR_UNCOR_SEVER, PCI_ERR_COR_MASK})
    TRY(PutBack(static_cast<uint16_t>(at.errors + mask), 4, ~0u));
  return PutBack(at.errors + PCI_ERR_CAP, 4, PCI_ERR_CAP_ECRC_GENE | PCI_ERR_CAP_ECRC_CHKE);
}

// The bits of `mask` of a register of the device's own, as they were at the start. Free where they are so.
Result<> ConfigView::PutBack(uint16_t offset, unsigned size, uint32_t mask) {
  const uint32_t now = Read(offset, size), initial = initial_.Read(offset, size);
  return ((now ^ initial) & mask) == 0 ? Result<>() : Write(offset, size, (now & ~mask) | (initial & mask));
}

Result<> ConfigView::HoldMaster(bool hold) {
  if (hold == holds_master_) return {};
  const uint32_t command = Read(PCI_COMMAND, 2);
  holds_master_ = hold;
  return Write(PCI_COMMAND, 2, command);
}

std::span<const uint8_t> ConfigView::MsiRegisters() {
  for (uint16_t i = 0; i < Msi::kMaxSize && capabilities_.msi + i < kSize; ++i)
    msi_registers_[i] = view_.Get<uint8_t>(static_cast<uint16_t>(capabilities_.msi + i));
  return msi_registers_;
}

void ConfigView::SetMsiPending(uint32_t pending) {
  const std::optional<Msi::Layout> layout = msi_layout();
  if (layout && layout->maskable)
    view_.Set<uint32_t>(capabilities_.msi + layout->pending(), pending);
}

}  // namespace crossbar
