#include "devices/pci_window.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace crossbar {

void PciWindow::Add(uint64_t start, uint64_t size, std::shared_ptr<BusDevice> device, uint64_t order) {
  CHECK(size != 0 && Contains(start, size), "{:#x} size {:#x}", start, size);
  MutexLock lock(mutex_);
  entries_.insert(std::ranges::upper_bound(entries_, order, {}, &Entry::order),
                  {start, size, std::move(device), order});
}

void PciWindow::Remove(const BusDevice* device) {
  std::shared_ptr<BusDevice> removed;  // outlives the lock, as a device's destructor must
  MutexLock lock(mutex_);
  const auto found = std::ranges::find(entries_, device, [](const Entry& e) { return e.device.get(); });
  if (found == entries_.end()) return;
  removed = std::move(found->device);
  entries_.erase(found);
}

const PciWindow::Entry* PciWindow::Oldest(uint64_t address, unsigned size) const {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& entry) {
    return address - entry.start < entry.size || entry.start - address < size;
  });
  return found == entries_.end() ? nullptr : &*found;
}

PciWindow::Answer PciWindow::Find(uint64_t address, unsigned size) const {
  Answer answer;
  MutexLock lock(mutex_);
  const Entry* const first = Oldest(address, size);
  if (first == nullptr) return answer;
  if (address >= first->start && size <= first->size - (address - first->start)) {
    answer.whole = *first;
    return answer;
  }
  for (unsigned i = 0; i < size; ++i)
    if (const Entry* const entry = Oldest(address + i, 1)) answer.bytes[i] = *entry;
  return answer;
}

uint64_t PciWindow::Read(uint64_t offset, unsigned size) {
  const uint64_t address = start_ + offset;
  const Answer answer = Find(address, size);
  if (answer.whole.device != nullptr)
    return answer.whole.device->Read(address - answer.whole.start, size);
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const Entry& entry = answer.bytes[i];
    const uint64_t byte =
        entry.device != nullptr ? entry.device->Read(address + i - entry.start, 1) : AllOnes(1);
    value |= byte << (8 * i);
  }
  return value;
}

void PciWindow::Write(uint64_t offset, unsigned size, uint64_t value) {
  const uint64_t address = start_ + offset;
  const Answer answer = Find(address, size);
  if (answer.whole.device != nullptr)
    return answer.whole.device->Write(address - answer.whole.start, size, value);
  for (unsigned i = 0; i < size; ++i) {
    const Entry& entry = answer.bytes[i];
    if (entry.device != nullptr)
      entry.device->Write(address + i - entry.start, 1, (value >> (8 * i)) & 0xff);
  }
}

}  // namespace crossbar
