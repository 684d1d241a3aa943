// MessageVectors: the vectors of a device's MSI or MSI-X, each an eventfd from the device straight into
// KVM. What the registers mean is Msi's and Msix's business; they say which vectors shall deliver what.
//
// Owned by one of them, called under its lock. A vector that is masked keeps its eventfd but not its
// irqfd: what the device signals meanwhile stays in the eventfd, is what the guest sees as pending, and
// is delivered by KVM itself when the irqfd comes back. Calls that fail leave the vector without
// interrupts and a rate-limited line in the log; guests have no other way to be told.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "devices/passthrough/backend.h"
#include "devices/passthrough/interrupt_router.h"

namespace crossbar {

class MessageVectors {
 public:
  using Message = InterruptRouter::Message;

  // `index` is VFIO_PCI_MSI_IRQ_INDEX or VFIO_PCI_MSIX_IRQ_INDEX, `count` the size of the table. What
  // is borrowed outlives this.
  MessageVectors(VfioBackend& backend, InterruptRouter& router, unsigned index, uint32_t count);
  ~MessageVectors() { Disable(); }

  // Turns the kind on at the device, with room for `vectors` at once (at least 1); none delivers yet.
  void Enable(uint32_t vectors);
  // Turns it off; signals that were pending are gone.
  void Disable();
  bool enabled() const { return enabled_; }

  // From vector `first` on: the message to deliver, or nothing where the vector is masked. All routes
  // change by one call to the router, all new vectors by one to the backend. Only while enabled.
  void Update(uint32_t first, std::span<const std::optional<Message>> wanted);

  // The device has signalled a vector that is masked.
  bool Pending(uint32_t vector) const;

 private:
  struct Vector {
    Fd event;                      // from its first use on
    uint32_t gsi = 0;              // valid with `event`
    std::optional<Message> route;  // of gsi
    bool in_device = false;        // the device signals `event`
    bool attached = false;         // KVM listens to `event`
  };

  Result<> Open(Vector& vector);
  Result<> RouteAll(uint32_t first, std::span<const std::optional<Message>> wanted);
  // Makes the device signal each vector below `end` that is open.
  Result<> GiveToDevice(uint32_t first, uint32_t end);
  Result<> SetAttached(Vector& vector, bool attached);
  void Complain(const char* doing, const Error& error) const;

  VfioBackend& backend_;
  InterruptRouter& router_;
  const unsigned index_;
  std::vector<Vector> vectors_;
  uint32_t device_vectors_ = 0;  // how many the device was told of
  bool enabled_ = false;
};

}  // namespace crossbar
