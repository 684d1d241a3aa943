// Intx: the legacy interrupt of a passed-through device: level-triggered, masked by the host at each
// interrupt and unmasked by the guest's EOI.
//
// Owned by a PassthroughFunction, called under its lock. With the kernel's VFIO both ways run without
// us (resample eventfd, Documentation/virt/kvm/api.rst KVM_IRQFD); a backend that cannot wait for the
// EOI's eventfd (vfio-user) is told by the watcher's thread.
#pragma once

#include <cstdint>

#include "base/fd.h"
#include "devices/passthrough/backend.h"
#include "devices/passthrough/event_watcher.h"
#include "devices/passthrough/interrupt_router.h"

namespace crossbar {

class Intx {
 public:
  // `gsi` is the pin of the interrupt controller. What is borrowed outlives this.
  Intx(VfioBackend& backend, InterruptRouter& router, EventWatcher& watcher, uint32_t gsi)
      : backend_(backend), router_(router), watcher_(watcher), gsi_(gsi) {}
  ~Intx() { Disable(); }

  bool enabled() const { return event_.valid(); }
  // On an error it stays off. Enabling again costs nothing.
  Result<> Enable();
  void Disable();

 private:
  Result<> Connect();

  VfioBackend& backend_;
  InterruptRouter& router_;
  EventWatcher& watcher_;
  const uint32_t gsi_;
  Fd event_;
  Fd end_of_interrupt_;
  // How far Connect came.
  bool attached_ = false;
  bool set_ = false;
  bool watched_ = false;
};

}  // namespace crossbar
