// ConfigView: the guest's view of a passed-through device's config space. Most bytes are the device's
// own, read and written through its driver; some are kept here: what would lie to the guest (links of
// the capability lists around those that are hidden) and what Crossbar provides itself (MSI, MSI-X).
// BAR registers are not here: they are Bars' (devices/passthrough/bars.h).
//
// Owned by a PassthroughFunction, under its lock. Layouts: PCIe 6.0, 7.5.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <span>

#include "base/result.h"
#include "devices/passthrough/backend.h"
#include "devices/passthrough/msi.h"
#include "devices/passthrough/msix.h"
#include "devices/pci_config_space.h"

namespace crossbar {

class ConfigView {
 public:
  // What is reset: each resets all that the one before it does, and more.
  enum class ResetKind { kFunction, kBus, kPower };

  // Offsets of capabilities that are handled here; 0: the device has none.
  struct Capabilities {
    uint8_t power = 0;
    uint8_t msi = 0;
    uint8_t msix = 0;
    uint8_t express = 0;
    uint8_t advanced_features = 0;
    uint16_t errors = 0;  // AER
  };

  // Reads all of the device's config space. `backend` is borrowed. Errors: it cannot be read; it is no
  // endpoint (only type 0 headers can be passed through).
  static Result<ConfigView> Create(VfioBackend& backend);

  const Capabilities& capabilities() const { return capabilities_; }
  std::optional<Msi::Layout> msi_layout() const;
  std::optional<Msix::Layout> msix_layout() const;
  // Whether the device has the reset that a write to its register would start.
  bool has_express_flr() const;
  bool has_advanced_flr() const;

  // `size` is 1, 2 or 4, `offset` a multiple of it. All ones where the device does not answer.
  uint32_t Read(uint16_t offset, unsigned size) const;
  // Error: the device's driver refused the write.
  Result<> Write(uint16_t offset, unsigned size, uint32_t value);

  // While held, the device masters no bus, whatever COMMAND says to the guest.
  Result<> HoldMaster(bool hold);
  bool holds_master() const { return holds_master_; }

  // What is kept here, as after a reset. Of the device's own: D0, and PCIe's Device Control and AER's masks as they were at
  // the start. Around a reset the kernel saves and restores those (pci_save_state in drivers/pci/pci.c), and a device that
  // cannot be reset never forgets them. Error: the device's driver refused a write.
  Result<> Reset(ResetKind kind);

  // The MSI capability's registers, for Msi; `pending` goes into its register of that name.
  std::span<const uint8_t> MsiRegisters();
  void SetMsiPending(uint32_t pending);
  // Message Control of MSI-X.
  uint16_t msix_control() const { return view_.Get<uint16_t>(capabilities_.msix + 2); }

 private:
  explicit ConfigView(VfioBackend& backend) : backend_(&backend) {}

  Result<> Load();
  void HideCapabilities();
  void HideExtendedCapabilities();
  void KeepMsi();
  void KeepMsix();
  Result<> PutBack(uint16_t offset, unsigned size, uint32_t mask);
  void Keep(uint16_t offset, uint16_t size);
  void KeepByte(uint16_t offset, uint8_t value);

  VfioBackend* backend_;
  PciConfigSpace view_;
  PciConfigSpace initial_;
  std::bitset<PciConfigSpace::kSize> kept_;  // bytes that are answered from view_
  Capabilities capabilities_;
  bool holds_master_ = false;
  bool wants_master_ = false;  // the guest's COMMAND, while held
  std::array<uint8_t, Msi::kMaxSize> msi_registers_ = {};
};

}  // namespace crossbar
