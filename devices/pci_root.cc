#include "devices/pci_root.h"

#include <linux/pci_regs.h>

#include <algorithm>
#include <utility>

#include "devices/bus.h"

namespace crossbar {
namespace {

constexpr uint8_t kMultifunction = 0x80;  // Header Type, bit 7 (PCIe 6.0, 7.5.1.1.9)
constexpr uint32_t kHostBridgeClass = 0x060000;
// QEMU's subsystem ids for devices without one of their own.
constexpr uint16_t kSubsystemVendorId = 0x1af4;
constexpr uint16_t kSubsystemId = 0x1100;

constexpr bool IsValid(PciDevfn devfn) {
  return devfn.device < 32 && devfn.function < 8;
}
constexpr size_t Index(PciDevfn devfn) {
  return size_t{devfn.device} * 8 + devfn.function;
}

// `value`, read at `offset`, with the multifunction bit as it is now.
uint32_t WithMultifunction(uint32_t value, uint16_t offset, unsigned size, bool multifunction) {
  if (offset > PCI_HEADER_TYPE || offset + size <= PCI_HEADER_TYPE) return value;
  const unsigned shift = 8 * (PCI_HEADER_TYPE - unsigned{offset});
  if (((value >> shift) & 0xff) == 0xff) return value;  // a lost device stays all ones (G7)
  const uint32_t bit = uint32_t{kMultifunction} << shift;
  return multifunction ? value | bit : value & ~bit;
}

void ClearCommand(const std::vector<std::shared_ptr<PciFunction>>& functions, uint32_t bits) {
  for (const auto& function : functions) {
    const uint32_t command = function->ReadConfig(PCI_COMMAND, 2);
    if ((command & bits) != 0) function->WriteConfig(PCI_COMMAND, 2, command & ~bits);
  }
}

}  // namespace

PciBus::PciBus() : table_(std::make_shared<const Table>()) {}

Result<> PciBus::Add(PciDevfn devfn, std::shared_ptr<PciFunction> function) {
  CHECK(function != nullptr, "at {}", devfn);
  if (!IsValid(devfn)) return Fail("{} is no PCI device and function", devfn);
  std::shared_ptr<const Table> old;  // outlives the lock, as functions' destructors must
  MutexLock lock(mutex_);
  if ((*table_)[Index(devfn)] != nullptr) return Fail("PCI {} is taken", devfn);
  auto changed = std::make_shared<Table>(*table_);
  (*changed)[Index(devfn)] = std::move(function);
  old = std::exchange(table_, std::move(changed));
  return {};
}

std::shared_ptr<PciFunction> PciBus::Remove(PciDevfn devfn) {
  if (!IsValid(devfn)) return nullptr;
  std::shared_ptr<const Table> old;
  MutexLock lock(mutex_);
  std::shared_ptr<PciFunction> removed = (*table_)[Index(devfn)];
  if (removed == nullptr) return nullptr;
  auto changed = std::make_shared<Table>(*table_);
  (*changed)[Index(devfn)] = nullptr;
  old = std::exchange(table_, std::move(changed));
  return removed;
}

std::shared_ptr<const PciBus::Table> PciBus::Snapshot() const {
  MutexLock lock(mutex_);
  return table_;
}

// The depth is that of the bridges that were built: whatever numbers the guest programs, it cannot
// make a bridge its own child.
PciBus::Target PciBus::Route(PciAddress address, uint8_t number) const {
  const std::shared_ptr<const Table> table = Snapshot();
  if (address.bus == number) {
    if (!IsValid(address.devfn)) return {};
    const auto device = table->begin() + static_cast<ptrdiff_t>(Index({address.devfn.device, 0}));
    const bool multifunction =
        std::any_of(device + 1, device + 8, [](const auto& f) { return f != nullptr; });
    return {device[address.devfn.function], multifunction};
  }
  for (const std::shared_ptr<PciFunction>& function : *table) {
    if (function == nullptr) continue;
    const PciFunction::Downstream behind = function->downstream();
    if (behind.bus == nullptr) continue;
    if (address.bus < behind.secondary || address.bus > behind.subordinate) continue;
    return behind.bus->Route(address, behind.secondary);
  }
  return {};
}

std::vector<std::shared_ptr<PciFunction>> PciBus::Functions() const {
  const std::shared_ptr<const Table> table = Snapshot();
  std::vector<std::shared_ptr<PciFunction>> all;
  for (const std::shared_ptr<PciFunction>& function : *table) {
    if (function == nullptr) continue;
    all.push_back(function);
    const PciFunction::Downstream behind = function->downstream();
    if (behind.bus == nullptr) continue;
    std::ranges::move(behind.bus->Functions(), std::back_inserter(all));
  }
  return all;
}

PciBus::Target PciRoot::Find(PciAddress address) const {
  if (address.bus < first_bus_ || address.bus > last_bus_) return {};
  return root_bus_.Route(address, first_bus_);
}

uint32_t PciRoot::Read(PciAddress address, uint16_t offset, unsigned size) {
  const PciBus::Target target = Find(address);
  if (target.function == nullptr) return static_cast<uint32_t>(AllOnes(size));
  const uint32_t value = target.function->ReadConfig(offset, size);
  return WithMultifunction(value, offset, size, target.multifunction);
}

void PciRoot::Write(PciAddress address, uint16_t offset, unsigned size, uint32_t value) {
  const PciBus::Target target = Find(address);
  if (target.function != nullptr) target.function->WriteConfig(offset, size, value);
}

// G8, the one place. A function that was reset while a peer still mastered the bus would be hit by
// that peer's DMA at addresses where it no longer answers.
void PciRoot::Reset() {
  const std::vector<std::shared_ptr<PciFunction>> functions = root_bus_.Functions();
  ClearCommand(functions, PCI_COMMAND_MASTER);
  ClearCommand(functions, PCI_COMMAND_MEMORY | PCI_COMMAND_IO);
  for (const auto& function : functions) function->Reset();
}

void PciRoot::StopBusMastering() { ClearCommand(root_bus_.Functions(), PCI_COMMAND_MASTER); }

HostBridge::HostBridge() {
  config_.Set<uint16_t>(PCI_VENDOR_ID, kVendorId);
  config_.Set<uint16_t>(PCI_DEVICE_ID, kDeviceId);
  config_.Set<uint32_t>(PCI_CLASS_REVISION, kHostBridgeClass << 8);
  config_.Set<uint16_t>(PCI_SUBSYSTEM_VENDOR_ID, kSubsystemVendorId);
  config_.Set<uint16_t>(PCI_SUBSYSTEM_ID, kSubsystemId);
}

}  // namespace crossbar
