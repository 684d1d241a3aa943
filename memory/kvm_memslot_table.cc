#include "memory/kvm_memslot_table.h"

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "base/kvm_uapi.h"
#include "base/sys.h"

namespace crossbar {

Result<KvmMemslotTable> KvmMemslotTable::Create(int vm_fd, uint32_t at_most) {
  const int limit =
      TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_CHECK_EXTENSION), KVM_CAP_NR_MEMSLOTS));
  // 0 means that KVM predates the capability; 32 is what every KVM has had.
  return KvmMemslotTable(vm_fd, std::min(limit > 0 ? static_cast<uint32_t>(limit) : 32, at_most));
}

KvmMemslotTable::KvmMemslotTable(KvmMemslotTable&& other) noexcept
    : vm_fd_(other.vm_fd_), limit_(other.limit_) {
  MutexLock lock(other.mutex_);
  CHECK(other.slots_.empty(), "a memslot table moves only before it is used");
}

Result<> KvmMemslotTable::SetRegion(const Memslot& slot, uint64_t size) {
  kvm_userspace_memory_region region{};
  region.slot = slot.number;
  region.flags = slot.read_only ? KVM_MEM_READONLY : 0;
  region.guest_phys_addr = slot.range.start.value();
  region.memory_size = size;
  region.userspace_addr = slot.host.value();
  TRY(sys::Ioctl(vm_fd_, SYS_REQUEST(KVM_SET_USER_MEMORY_REGION), &region, [&] {
    return fmt::format("slot {} {} hva {:#x}{}", slot.number, slot.range, slot.host.value(),
                       size == 0 ? " (delete)" : "");
  }));
  return {};
}

Result<uint32_t> KvmMemslotTable::Add(GuestRange range, Hva host, bool read_only) {
  MutexLock lock(mutex_);
  const uint32_t number = free_.empty() ? static_cast<uint32_t>(slots_.size()) : *free_.begin();
  if (number >= limit_)
    return std::unexpected(Error(ENOSPC, fmt::format("all {} memslots are in use", limit_)));
  const Memslot slot{number, range, host, read_only};
  TRY(SetRegion(slot, range.size));
  slots_.emplace(number, slot);
  free_.erase(number);
  return number;
}

Result<> KvmMemslotTable::Remove(uint32_t number) {
  MutexLock lock(mutex_);
  const auto it = slots_.find(number);
  CHECK(it != slots_.end(), "no memslot {}", number);
  const Result<> removed = SetRegion(it->second, 0);
  if (!removed) return removed;
  slots_.erase(it);
  free_.insert(number);
  return {};
}

Result<> KvmMemslotTable::SetIoEvent(const IoEvent& event, uint32_t flags) {
  kvm_ioeventfd request{};
  request.addr = event.address.value();
  request.len = event.size;
  request.fd = event.eventfd;
  request.datamatch = event.datamatch.value_or(0);
  request.flags = flags | (event.datamatch ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0u);
  TRY(sys::Ioctl(vm_fd_, SYS_REQUEST(KVM_IOEVENTFD), &request,
                 [&] { return fmt::format("at {} size {}", event.address, event.size); }));
  return {};
}

Result<> KvmMemslotTable::AddIoEvent(const IoEvent& event) { return SetIoEvent(event, 0); }

Result<> KvmMemslotTable::RemoveIoEvent(const IoEvent& event) {
  return SetIoEvent(event, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

std::vector<Memslot> KvmMemslotTable::Slots() const {
  MutexLock lock(mutex_);
  std::vector<Memslot> slots;
  slots.reserve(slots_.size());
  for (const auto& [number, slot] : slots_) slots.push_back(slot);
  return slots;
}

}  // namespace crossbar
