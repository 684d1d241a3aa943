#include "devices/bus.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace crossbar {

static_assert(std::endian::native == std::endian::little, "bus values are little-endian");

BusDevice* TrapBus::Cursor::Find(uint64_t address, unsigned size) {
  const uint64_t generation = bus_.generation_.load(std::memory_order_acquire);
  if (generation != generation_ || !entry_.Contains(address, size)) [[unlikely]] {
    // Read before the map, so that a removal in between makes the next access look again.
    entry_ = bus_.Lookup(address).value_or(Entry{});
    generation_ = generation;
    if (!entry_.Contains(address, size)) return nullptr;
  }
  return entry_.device.get();
}

void TrapBus::Cursor::Read(uint64_t address, uint8_t* data, unsigned size) {
  CHECK(size >= 1 && size <= 8, "an access of {} bytes at {:#x}", size, address);
  BusDevice* device = std::has_single_bit(size) ? Find(address, size) : nullptr;
  if (device != nullptr) {
    const uint64_t value = device->Read(address - entry_.start, size);
    std::memcpy(data, &value, size);
    return;
  }
  std::memset(data, 0xff, size);
  if (size == 1) return;
  // No byte wraps around to address 0.
  for (unsigned i = 0; i < size && address + i >= address; ++i) Read(address + i, data + i, 1);
}

void TrapBus::Cursor::Write(uint64_t address, const uint8_t* data, unsigned size) {
  CHECK(size >= 1 && size <= 8, "an access of {} bytes at {:#x}", size, address);
  BusDevice* device = std::has_single_bit(size) ? Find(address, size) : nullptr;
  if (device != nullptr) {
    uint64_t value = 0;
    std::memcpy(&value, data, size);
    device->Write(address - entry_.start, size, value);
    return;
  }
  if (size == 1) return;
  for (unsigned i = 0; i < size && address + i >= address; ++i) Write(address + i, data + i, 1);
}

Result<> TrapBus::Add(uint64_t start, uint64_t size, std::shared_ptr<BusDevice> device) {
  CHECK(device != nullptr, "at {:#x}", start);
  if (size == 0) return Fail("empty range at {:#x}", start);
  const uint64_t last = start + (size - 1);
  if (last < start) return Fail("range at {:#x} of {:#x} bytes wraps", start, size);

  MutexLock lock(mutex_);
  const auto next = std::ranges::lower_bound(entries_, start, {}, &Entry::start);
  const Entry* other = nullptr;
  if (next != entries_.end() && next->start <= last) other = &*next;
  if (next != entries_.begin() && std::prev(next)->Contains(start, 1)) other = &*std::prev(next);
  if (other != nullptr) {
    return Fail("{:#x}-{:#x} overlaps the device at {:#x}-{:#x}", start, last, other->start,
                other->start + (other->size - 1));
  }
  entries_.insert(next, Entry{start, size, std::move(device)});
  return {};
}

bool TrapBus::Remove(uint64_t start) {
  Entry removed;  // outlives the lock: a destructor may use the bus
  MutexLock lock(mutex_);
  const auto found = std::ranges::lower_bound(entries_, start, {}, &Entry::start);
  if (found == entries_.end() || found->start != start) return false;
  removed = std::move(*found);
  entries_.erase(found);
  generation_.fetch_add(1, std::memory_order_release);
  return true;
}

std::optional<TrapBus::Entry> TrapBus::Lookup(uint64_t address) const {
  MutexLock lock(mutex_);
  const auto next = std::ranges::upper_bound(entries_, address, {}, &Entry::start);
  if (next == entries_.begin()) return std::nullopt;
  const Entry& entry = *std::prev(next);
  if (!entry.Contains(address, 1)) return std::nullopt;
  return entry;
}

}  // namespace crossbar
