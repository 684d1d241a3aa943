// KvmMemslotTable: memslots by KVM_SET_USER_MEMORY_REGION, ioeventfds by KVM_IOEVENTFD.
//
// Owned by Vm, used by its AddressSpace, which serialises Add and Remove. The lowest free number is
// reused first, because KVM's array is as long as its highest number in use on old kernels.
#pragma once

#include <cstdint>
#include <map>
#include <set>

#include "base/locks.h"
#include "memory/memslot_table.h"

namespace crossbar {

class KvmMemslotTable : public MemslotTable {
 public:
  // `vm_fd` is borrowed and outlives this. Asks KVM_CAP_NR_MEMSLOTS for the limit; `at_most` lowers
  // it.
  static Result<KvmMemslotTable> Create(int vm_fd, uint32_t at_most = UINT32_MAX);
  KvmMemslotTable(KvmMemslotTable&& other) noexcept;

  Result<uint32_t> Add(GuestRange range, Hva host, bool read_only) override;
  Result<> Remove(uint32_t number) override;
  Result<> AddIoEvent(const IoEvent& event) override;
  Result<> RemoveIoEvent(const IoEvent& event) override;
  std::vector<Memslot> Slots() const override;

 private:
  KvmMemslotTable(int vm_fd, uint32_t limit) : vm_fd_(vm_fd), limit_(limit) {}
  Result<> SetRegion(const Memslot& slot, uint64_t size);
  Result<> SetIoEvent(const IoEvent& event, uint32_t flags);

  const int vm_fd_;
  const uint32_t limit_;  // numbers are 0 .. limit_ - 1

  mutable Mutex mutex_;  // Slots() may come from any thread
  std::map<uint32_t, Memslot> slots_ GUARDED_BY(mutex_);
  std::set<uint32_t> free_ GUARDED_BY(mutex_);  // numbers used before; below them all are in slots_
};

}  // namespace crossbar
