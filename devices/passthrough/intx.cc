#include "devices/passthrough/intx.h"

#include <linux/vfio.h>
#include <sys/eventfd.h>

#include <array>

#include "base/log.h"
#include "base/sys.h"

namespace crossbar {

Result<> Intx::Enable() {
  if (enabled()) return {};
  const Result<> connected = Connect();
  if (!connected) Disable();
  return connected;
}

Result<> Intx::Connect() {
  event_ = TRY(sys::EventFd(0, EFD_NONBLOCK));
  end_of_interrupt_ = TRY(sys::EventFd(0, EFD_NONBLOCK));
  TRY(router_.AttachLevel(gsi_, event_.get(), end_of_interrupt_.get()));
  attached_ = true;
  const std::array events = {event_.get()};
  TRY(backend_.SetInterrupts(VFIO_PCI_INTX_IRQ_INDEX, 0, events));
  set_ = true;
  // After the interrupt itself: the kernel refuses an unmask event for one that is off.
  if (TRY(backend_.SetIntxUnmaskEvent(end_of_interrupt_.get()))) return {};
  TRY(watcher_.Watch(end_of_interrupt_.get(), [this] {
    static_cast<void>(sys::DrainEvent(end_of_interrupt_));
    const Result<> unmasked = backend_.UnmaskIntx();
    static RateLimit limit;
    if (!unmasked)
      LogGuest(limit, "{}: INTx stays masked: {}", backend_.name(), unmasked.error().message());
  }));
  watched_ = true;
  return {};
}

void Intx::Disable() {
  if (!enabled()) return;
  if (watched_) watcher_.Unwatch(end_of_interrupt_.get());
  watched_ = false;
  static RateLimit limit;
  const auto complain = [&](const Result<>& done) {
    if (!done)
      LogGuest(limit, "{}: cannot end INTx: {}", backend_.name(), done.error().message());
  };
  if (set_) complain(backend_.DisableInterrupts(VFIO_PCI_INTX_IRQ_INDEX));
  set_ = false;
  if (attached_) complain(router_.Detach(gsi_, event_.get()));
  attached_ = false;
  event_.Reset();
  end_of_interrupt_.Reset();
}

}  // namespace crossbar
