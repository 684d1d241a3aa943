// KvmInterruptRouter: InterruptRouter over KVM's GSI routing table and irqfds (KVM API, 4.52 and 4.75).
//
// Owned by Vm, made after the in-kernel interrupt controllers. Any thread. KVM replaces the whole table
// at each change, so all of it is kept here: the controllers' pins as KVM set them up, and the messages.
#pragma once

#include <cstdint>
#include <map>
#include <set>

#include "base/locks.h"
#include "devices/passthrough/interrupt_router.h"

namespace crossbar {

class KvmInterruptRouter : public InterruptRouter {
 public:
  // `vm_fd` is borrowed and outlives this. `pins` are those of the I/O APIC, which come first; `limit`
  // is how many GSIs KVM routes (KVM_CAP_IRQ_ROUTING).
  KvmInterruptRouter(int vm_fd, uint32_t pins, uint32_t limit)
      : vm_fd_(vm_fd), pins_(pins), limit_(limit) {}

  Result<uint32_t> AllocateGsi() override EXCLUDES(mutex_);
  void FreeGsi(uint32_t gsi) override EXCLUDES(mutex_);
  Result<> SetRoutes(std::span<const Route> routes) override EXCLUDES(mutex_);
  Result<> Attach(uint32_t gsi, int eventfd) override;
  Result<> AttachLevel(uint32_t gsi, int eventfd, int resample) override;
  Result<> Detach(uint32_t gsi, int eventfd) override;

 private:
  Result<> SetIrqfd(uint32_t gsi, int eventfd, int resample, uint32_t flags);
  Result<> Commit(const std::map<uint32_t, Message>& messages) const;

  const int vm_fd_;
  const uint32_t pins_;
  const uint32_t limit_;

  Mutex mutex_;
  std::set<uint32_t> allocated_ GUARDED_BY(mutex_);
  std::map<uint32_t, Message> messages_ GUARDED_BY(mutex_);  // by GSI
};

}  // namespace crossbar
