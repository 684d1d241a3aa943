#include "devices/bus.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace crossbar {

static_assert(std::endian::native == std::endian::little, "bus values are little-endian");

bool TrapBus::Cursor::Find(uint64_t address, unsigned size) {
  if (!IsAccessSize(size)) return false;
  // Read before the map, so that a removal in between makes the next access look again.
  generation_ = bus_.generation_.load(std::memory_order_acquire);
  entry_ = bus_.Lookup(address).value_or(Entry{});
  return entry_.Contains(address, size);
}

void TrapBus::Cursor::ReadBytes(uint64_t address, uint8_t* data, unsigned size) {
  CHECK(size >= 1 && size <= 8, "an access of {} bytes at {:#x}", size, address);
  std::memset(data, 0xff, size);
  if (size == 1) return;
  // No byte wraps around to address 0.
  for (unsigned i = 0; i < size && address + i >= address; ++i) Read(address + i, data + i, 1);
}

void TrapBus::Cursor::WriteBytes(uint64_t address, const uint8_t* data, unsigned size) {
  CHECK(size >= 1 && size <= 8, "an access of {} bytes at {:#x}", size, address);
  if (size == 1) return;
  for (unsigned i = 0; i < size && address + i >= address; ++i) Write(address + i, data + i, 1);
}

Result<> TrapBus::Insert(Entry entry) {
  const auto [start, size] = std::pair(entry.start, entry.size);
  CHECK(entry.device != nullptr, "at {:#x}", start);
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
  entries_.insert(next, std::move(entry));
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
