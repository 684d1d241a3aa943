// InterruptLines: a served device's interrupts: the eventfds its client gave for them, and INTx as a level.
//
// Any thread. INTx is masked by its own interrupt until the client unmasks it (SET_IRQS), and raised
// again then if the device still asserts it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/locks.h"
#include "devices/vfio_user/protocol.h"

namespace crossbar::vfio_user {

class InterruptLines {
 public:
  static constexpr unsigned kKinds = 5;  // VFIO_PCI_NUM_IRQS

  // How many of each kind the device has, by VFIO_PCI_*_IRQ_INDEX.
  explicit InterruptLines(std::array<uint32_t, kKinds> counts);

  uint32_t count(unsigned kind) const { return kind < kKinds ? counts_[kind] : 0; }

  // One SET_IRQS; `bools` is what follows the struct. An errno, or 0. Eventfds that it keeps are moved out
  // of `fds`; closing what else is there may take for ever and is the caller's.
  uint32_t Set(const SetIrqs& request, std::span<const std::byte> bools, std::span<Fd> fds)
      EXCLUDES(mutex_);
  void Clear() EXCLUDES(mutex_);

  // One message of MSI-X, or of MSI, whichever the client has set up; false where neither is.
  bool SendMessage(uint32_t vector) EXCLUDES(mutex_);
  void SetIntx(bool asserted) EXCLUDES(mutex_);

 private:
  uint32_t SetEvents(const SetIrqs& request, std::span<Fd> fds) REQUIRES(mutex_);
  uint32_t Act(const SetIrqs& request, uint32_t vector) REQUIRES(mutex_);
  void Signal(unsigned kind, uint32_t vector) REQUIRES(mutex_);
  void RaiseIntx() REQUIRES(mutex_);

  const std::array<uint32_t, kKinds> counts_;

  Mutex mutex_;
  std::array<std::vector<Fd>, kKinds> events_ GUARDED_BY(mutex_);
  bool intx_ GUARDED_BY(mutex_) = false;
  bool masked_ GUARDED_BY(mutex_) = false;
};

}  // namespace crossbar::vfio_user
