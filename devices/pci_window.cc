#include "devices/pci_window.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace crossbar {

void PciWindow::Add(uint64_t start, uint64_t size, std::shared_ptr<BusDevice> device) {
  CHECK(size != 0 && Contains(start, size), "{:#x} size {:#x}", start, size);
  MutexLock lock(mutex_);
  entries_.push_back({start, size, std::move(device)});
}

void PciWindow::Remove(const BusDevice* device) {
  std::shared_ptr<BusDevice> removed;  // outlives the lock, as a device's destructor must
  MutexLock lock(mutex_);
  const auto found = std::ranges::find(entries_, device, [](const Entry& e) { return e.device.get(); });
  if (found == entries_.end()) return;
  removed = std::move(found->device);
  entries_.erase(found);
}

PciWindow::Entry PciWindow::Find(uint64_t address) const {
  MutexLock lock(mutex_);
  const auto found = std::ranges::find_if(
      entries_, [&](const Entry& entry) { return address - entry.start < entry.size; });
  return found == entries_.end() ? Entry() : *found;
}

uint64_t PciWindow::Read(uint64_t offset, unsigned size) {
  const uint64_t address = start_ + offset;
  const Entry entry = Find(address);
  if (entry.device != nullptr && size <= entry.size - (address - entry.start))
    return entry.device->Read(address - entry.start, size);
  if (size == 1) return AllOnes(1);
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= Read(offset + i, 1) << (8 * i);
  return value;
}

void PciWindow::Write(uint64_t offset, unsigned size, uint64_t value) {
  const uint64_t address = start_ + offset;
  const Entry entry = Find(address);
  if (entry.device != nullptr && size <= entry.size - (address - entry.start))
    return entry.device->Write(address - entry.start, size, value);
  if (size == 1) return;
  for (unsigned i = 0; i < size; ++i) Write(offset + i, 1, (value >> (8 * i)) & 0xff);
}

}  // namespace crossbar
