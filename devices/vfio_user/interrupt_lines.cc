#include "devices/vfio_user/interrupt_lines.h"

#include <linux/vfio.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/sys.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user {
namespace {

constexpr uint32_t kData = SetIrqs::kDataNone | SetIrqs::kDataBool | SetIrqs::kDataEventfd;
constexpr uint32_t kActions = SetIrqs::kMask | SetIrqs::kUnmask | SetIrqs::kTrigger;

}  // namespace

InterruptLines::InterruptLines(std::array<uint32_t, kKinds> counts) : counts_(counts) {
  for (unsigned kind = 0; kind < kKinds; ++kind) events_[kind].resize(counts[kind]);
}

uint32_t InterruptLines::Set(const SetIrqs& request, std::span<const std::byte> bools,
                             std::span<Fd> fds) {
  if (!std::has_single_bit(request.flags & kData) ||
      !std::has_single_bit(request.flags & kActions) ||
      (request.flags & ~(kData | kActions)) != 0 || request.index >= kKinds)
    return EINVAL;
  const uint32_t count = counts_[request.index];
  if (request.start > count || request.count > count - request.start) return EINVAL;
  const bool events = (request.flags & SetIrqs::kDataEventfd) != 0;
  const bool some = (request.flags & SetIrqs::kDataBool) != 0;
  if (!events && !fds.empty()) return EINVAL;
  if (some && bools.size() < request.count) return EINVAL;
  MutexLock lock(mutex_);
  if (events) return SetEvents(request, fds);
  if (request.count == 0) {
    if ((request.flags & SetIrqs::kTrigger) == 0 || request.start != 0) return EINVAL;
    for (Fd& event : events_[request.index]) event.Reset();
    if (request.index == VFIO_PCI_INTX_IRQ_INDEX) masked_ = false;
    return 0;
  }
  for (uint32_t i = 0; i < request.count; ++i) {
    if (some && bools[i] == std::byte{0}) continue;
    if (const uint32_t error = Act(request, request.start + i); error != 0) return error;
  }
  return 0;
}

uint32_t InterruptLines::SetEvents(const SetIrqs& request, std::span<Fd> fds) {
  // An eventfd that masks or unmasks would need somebody who waits for it; the client can call.
  if ((request.flags & SetIrqs::kTrigger) == 0) return EINVAL;
  if (!fds.empty() && fds.size() != request.count) return EINVAL;
  // Nothing else can be trusted not to let us wait.
  if (!std::ranges::all_of(fds, [](const Fd& fd) { return sys::IsEventFd(fd.get()); }))
    return EINVAL;
  for (uint32_t i = 0; i < request.count; ++i)
    events_[request.index][request.start + i] = fds.empty() ? Fd() : std::move(fds[i]);
  if (request.index == VFIO_PCI_INTX_IRQ_INDEX) {
    masked_ = false;
    RaiseIntx();
  }
  return 0;
}

uint32_t InterruptLines::Act(const SetIrqs& request, uint32_t vector) {
  if ((request.flags & SetIrqs::kTrigger) != 0) {
    Signal(request.index, vector);
    return 0;
  }
  if (request.index != VFIO_PCI_INTX_IRQ_INDEX) return EINVAL;
  masked_ = (request.flags & SetIrqs::kMask) != 0;
  RaiseIntx();
  return 0;
}

void InterruptLines::Clear() {
  MutexLock lock(mutex_);
  for (std::vector<Fd>& kind : events_) {
    for (Fd& event : kind) event.Reset();
  }
  masked_ = false;
}

void InterruptLines::Signal(unsigned kind, uint32_t vector) {
  const Fd& event = events_[kind][vector];
  if (event.valid()) sys::SignalSharedEvent(event);
}

void InterruptLines::RaiseIntx() {
  if (!intx_ || masked_ || counts_[VFIO_PCI_INTX_IRQ_INDEX] == 0) return;
  if (!events_[VFIO_PCI_INTX_IRQ_INDEX][0].valid()) return;
  masked_ = true;
  Signal(VFIO_PCI_INTX_IRQ_INDEX, 0);
}

bool InterruptLines::SendMessage(uint32_t vector) {
  MutexLock lock(mutex_);
  for (const unsigned kind : {VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX}) {
    const std::vector<Fd>& events = events_[kind];
    if (std::ranges::none_of(events, &Fd::valid)) continue;
    // Fewer messages than causes: they share the first (PCIe 6.0, 6.1.4).
    Signal(kind, vector < events.size() ? vector : 0);
    return true;
  }
  return false;
}

void InterruptLines::SetIntx(bool asserted) {
  MutexLock lock(mutex_);
  intx_ = asserted;
  RaiseIntx();
}

}  // namespace crossbar::vfio_user
