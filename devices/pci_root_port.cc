#include "devices/pci_root_port.h"

#include <linux/pci_regs.h>

#include "base/check.h"

namespace crossbar {
namespace {

constexpr uint32_t kBridgeClass = 0x060400;
constexpr uint16_t kExpressSize = 0x3c;  // of version 2
// The link is none: as fast as any that a device behind it can have, so that guests find no bottleneck.
constexpr uint32_t kLinkSpeed = PCI_EXP_LNKCAP_SLS_32_0GB;
constexpr uint32_t kLinkWidth = 32;
constexpr uint32_t kLinkSpeeds = 0x3e;  // Link Capabilities 2: 2.5 to 32 GT/s

}  // namespace

PciRootPort::PciRootPort() {
  MutexLock lock(mutex_);
  config_.Set<uint16_t>(PCI_VENDOR_ID, kVendorId);
  config_.Set<uint16_t>(PCI_DEVICE_ID, kDeviceId);
  config_.Set<uint32_t>(PCI_CLASS_REVISION, kBridgeClass << 8);
  config_.Set<uint8_t>(PCI_HEADER_TYPE, PCI_HEADER_TYPE_BRIDGE);
  config_.SetWritable<uint16_t>(PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                                                 PCI_COMMAND_PARITY | PCI_COMMAND_SERR);
  config_.SetWritable<uint32_t>(PCI_PRIMARY_BUS, 0x00ffffff);  // and both other numbers
  config_.SetWritable<uint16_t>(PCI_IO_BASE, 0xf0f0);          // and the limit, and so on
  config_.SetWritable<uint32_t>(PCI_MEMORY_BASE, 0xfff0fff0);
  config_.Set<uint32_t>(PCI_PREF_MEMORY_BASE, PCI_PREF_RANGE_TYPE_64 << 16 | PCI_PREF_RANGE_TYPE_64);
  config_.SetWritable<uint32_t>(PCI_PREF_MEMORY_BASE, 0xfff0fff0);
  config_.SetWritable<uint32_t>(PCI_PREF_BASE_UPPER32, ~0u);
  config_.SetWritable<uint32_t>(PCI_PREF_LIMIT_UPPER32, ~0u);
  config_.SetWritable<uint16_t>(PCI_BRIDGE_CONTROL,
                                PCI_BRIDGE_CTL_PARITY | PCI_BRIDGE_CTL_SERR | PCI_BRIDGE_CTL_BUS_RESET);
  AddExpressCapability();
  power_on_ = config_;
}

void PciRootPort::AddExpressCapability() {
  const auto at = config_.AddCapability(PCI_CAP_ID_EXP, kExpressSize);
  CHECK(at.has_value());
  express_ = *at;
  config_.Set<uint16_t>(express_ + PCI_EXP_FLAGS, PCI_EXP_TYPE_ROOT_PORT << 4 | 2);
  config_.Set<uint32_t>(express_ + PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_RBER);
  config_.SetWritable<uint16_t>(express_ + PCI_EXP_DEVCTL,
                                PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE | PCI_EXP_DEVCTL_FERE |
                                    PCI_EXP_DEVCTL_URRE);
  // Where link changes are reported a guest need not wait a whole second after a reset (6.6.1).
  config_.Set<uint32_t>(express_ + PCI_EXP_LNKCAP,
                        kLinkSpeed | kLinkWidth << 4 | PCI_EXP_LNKCAP_DLLLARC);
  config_.SetWritable<uint16_t>(express_ + PCI_EXP_LNKCTL, PCI_EXP_LNKCTL_LD);
  config_.Set<uint16_t>(express_ + PCI_EXP_LNKSTA,
                        static_cast<uint16_t>(kLinkSpeed | kLinkWidth << 4 | PCI_EXP_LNKSTA_DLLLA));
  config_.SetWritable<uint16_t>(express_ + PCI_EXP_RTCTL,
                                PCI_EXP_RTCTL_SECEE | PCI_EXP_RTCTL_SENFEE | PCI_EXP_RTCTL_SEFEE);
  config_.Set<uint32_t>(express_ + PCI_EXP_LNKCAP2, kLinkSpeeds);
  config_.Set<uint16_t>(express_ + PCI_EXP_LNKCTL2, kLinkSpeed);
}

bool PciRootPort::LinkIsUp() const {
  return (config_.Get<uint16_t>(PCI_BRIDGE_CONTROL) & PCI_BRIDGE_CTL_BUS_RESET) == 0 &&
         (config_.Get<uint16_t>(express_ + PCI_EXP_LNKCTL) & PCI_EXP_LNKCTL_LD) == 0;
}

PciRootPort::Forwarding PciRootPort::Forwards() const {
  const PciConfigSpace* const config = &config_;  // clang's lock analysis follows lambdas into members
  const auto command = config->Get<uint16_t>(PCI_COMMAND);
  const auto get16 = [config](uint16_t offset) {
    return uint64_t{config->Get<uint16_t>(offset)} & 0xfff0;
  };
  const auto get32 = [config](uint16_t offset) {
    return uint64_t{config->Get<uint32_t>(offset)} << 32;
  };
  Forwarding forwarding;
  forwarding.upstream = (command & PCI_COMMAND_MASTER) != 0;
  if ((command & PCI_COMMAND_IO) != 0) {
    const auto base = uint64_t{config->Get<uint8_t>(PCI_IO_BASE)};
    const auto limit = uint64_t{config->Get<uint8_t>(PCI_IO_LIMIT)};
    forwarding.ports = {base << 8, limit << 8 | 0xfff};
  }
  if ((command & PCI_COMMAND_MEMORY) != 0) {
    forwarding.memory = {get16(PCI_MEMORY_BASE) << 16, get16(PCI_MEMORY_LIMIT) << 16 | 0xfffff};
    forwarding.prefetchable = {
        get32(PCI_PREF_BASE_UPPER32) | get16(PCI_PREF_MEMORY_BASE) << 16,
        get32(PCI_PREF_LIMIT_UPPER32) | get16(PCI_PREF_MEMORY_LIMIT) << 16 | 0xfffff};
  }
  return forwarding;
}

PciRootPort::Forwarding PciRootPort::forwarding() const {
  MutexLock lock(mutex_);
  return Forwards();
}

uint32_t PciRootPort::ReadConfig(uint16_t offset, unsigned size) {
  MutexLock lock(mutex_);
  return config_.Read(offset, size);
}

void PciRootPort::WriteConfig(uint16_t offset, unsigned size, uint32_t value) {
  bool resets = false;
  bool forwards_otherwise = false;
  {
    MutexLock lock(mutex_);
    const Forwarding before = Forwards();
    const bool was_up = LinkIsUp();
    config_.Write(offset, size, value);
    const auto status = config_.Get<uint16_t>(express_ + PCI_EXP_LNKSTA);
    config_.Set<uint16_t>(express_ + PCI_EXP_LNKSTA,
                          static_cast<uint16_t>(LinkIsUp() ? status | PCI_EXP_LNKSTA_DLLLA
                                                           : status & ~PCI_EXP_LNKSTA_DLLLA));
    resets = was_up && !LinkIsUp();
    forwards_otherwise = Forwards() != before;
  }
  if (!resets && !forwards_otherwise) return;
  for (const auto& function : bus_.Functions()) {
    if (resets) function->OnBusReset();
    if (forwards_otherwise) function->OnForwardingChange();
  }
}

void PciRootPort::Reset() {
  MutexLock lock(mutex_);
  config_ = power_on_;
}

PciFunction::Downstream PciRootPort::downstream() {
  MutexLock lock(mutex_);
  if (!LinkIsUp()) return {&bus_, 1, 0};  // no number is its
  return {&bus_, config_.Get<uint8_t>(PCI_SECONDARY_BUS), config_.Get<uint8_t>(PCI_SUBORDINATE_BUS)};
}

}  // namespace crossbar
