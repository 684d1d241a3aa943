// InterruptRouter: how an eventfd that a device signals becomes an interrupt of the guest, without us.
//
// vmm/ implements it over KVM (KVM_SET_GSI_ROUTING, KVM_IRQFD); tests record it. Any thread. GSIs of
// the interrupt controllers' pins are the platform's; those of messages are handed out here.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"

namespace crossbar {

class InterruptRouter {
 public:
  // What a device would write, and where (MSI and MSI-X).
  struct Message {
    uint64_t address = 0;
    uint32_t data = 0;
    bool operator==(const Message&) const = default;
  };
  struct Route {
    uint32_t gsi = 0;
    Message message;
  };

  virtual ~InterruptRouter() = default;

  // A GSI for a message, not routed yet. Error: KVM has no more.
  virtual Result<uint32_t> AllocateGsi() = 0;
  // Its irqfd is detached before.
  virtual void FreeGsi(uint32_t gsi) = 0;

  // Routes all of `routes` by one call to KVM; those routed before keep theirs otherwise.
  virtual Result<> SetRoutes(std::span<const Route> routes) = 0;

  // From now on `eventfd` raises `gsi`; if it was signalled before, at once. Borrowed until Detach.
  virtual Result<> Attach(uint32_t gsi, int eventfd) = 0;
  // As Attach for a level-triggered pin: it is raised until the guest's EOI, which signals `resample`.
  virtual Result<> AttachLevel(uint32_t gsi, int eventfd, int resample) = 0;
  // When it returns, `eventfd` raises nothing any more; signals from now on stay in it.
  virtual Result<> Detach(uint32_t gsi, int eventfd) = 0;
};

}  // namespace crossbar
