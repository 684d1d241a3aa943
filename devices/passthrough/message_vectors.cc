#include "devices/passthrough/message_vectors.h"

#include <sys/eventfd.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "base/sys.h"

namespace crossbar {

MessageVectors::MessageVectors(VfioBackend& backend, InterruptRouter& router, unsigned index,
                               uint32_t count)
    : backend_(backend), router_(router), index_(index), vectors_(count) {}

void MessageVectors::Complain(const char* doing, const Error& error) const {
  static RateLimit limit;
  LogGuest(limit, "{}: cannot {}: {}", backend_.name(), doing, error.message());
}

void MessageVectors::Enable(uint32_t vectors) {
  CHECK(!enabled_ && vectors >= 1 && vectors <= vectors_.size());
  enabled_ = true;
  // No vector is in use yet, but the device has to know that it may not use INTx any more.
  const std::vector<int> none(vectors, -1);
  const Result<> set = backend_.SetInterrupts(index_, 0, none);
  if (!set) return Complain("enable message interrupts", set.error());
  device_vectors_ = vectors;
}

void MessageVectors::Disable() {
  if (!enabled_) return;
  enabled_ = false;
  if (device_vectors_ != 0) {
    const Result<> disabled = backend_.DisableInterrupts(index_);
    if (!disabled) Complain("disable message interrupts", disabled.error());
  }
  device_vectors_ = 0;
  for (Vector& vector : vectors_) {
    if (!vector.event.valid()) continue;
    const Result<> detached = SetAttached(vector, false);
    if (!detached) Complain("detach an interrupt", detached.error());
    router_.FreeGsi(vector.gsi);
    vector = Vector();
  }
}

Result<> MessageVectors::Open(Vector& vector) {
  Fd event = TRY(sys::EventFd(0, EFD_NONBLOCK));
  vector.gsi = TRY(router_.AllocateGsi());
  vector.event = std::move(event);
  return {};
}

Result<> MessageVectors::RouteAll(uint32_t first, std::span<const std::optional<Message>> wanted) {
  std::vector<InterruptRouter::Route> routes;
  for (uint32_t i = 0; i < wanted.size(); ++i) {
    Vector& vector = vectors_[first + i];
    if (!wanted[i] || vector.route == wanted[i]) continue;
    if (!vector.event.valid()) TRY(Open(vector));
    routes.push_back({vector.gsi, *wanted[i]});
  }
  if (routes.empty()) return {};
  TRY(router_.SetRoutes(routes));
  for (uint32_t i = 0; i < wanted.size(); ++i)
    if (wanted[i]) vectors_[first + i].route = wanted[i];
  return {};
}

Result<> MessageVectors::GiveToDevice(uint32_t first, uint32_t end) {
  // The smallest run that holds all which the device does not know yet.
  while (first < end && (vectors_[first].in_device || !vectors_[first].event.valid())) ++first;
  while (end > first && (vectors_[end - 1].in_device || !vectors_[end - 1].event.valid())) --end;
  if (first == end) return {};
  if (end > device_vectors_ && device_vectors_ != 0 && !backend_.interrupt(index_).resizable) {
    // Kernels without dynamic MSI-X take no more vectors while some are in use.
    TRY(backend_.DisableInterrupts(index_));
    device_vectors_ = 0;
  }
  if (device_vectors_ == 0) first = 0;
  std::vector<int> events;
  for (uint32_t i = first; i < end; ++i) events.push_back(vectors_[i].event.get());
  const Result<> set = backend_.SetInterrupts(index_, first, events);
  if (!set) {
    for (Vector& vector : vectors_) vector.in_device = false;
    return set;
  }
  device_vectors_ = std::max(device_vectors_, end);
  for (uint32_t i = first; i < end; ++i) vectors_[i].in_device = vectors_[i].event.valid();
  return {};
}

Result<> MessageVectors::SetAttached(Vector& vector, bool attached) {
  if (vector.attached == attached) return {};
  if (attached) {
    TRY(router_.Attach(vector.gsi, vector.event.get()));
  } else {
    TRY(router_.Detach(vector.gsi, vector.event.get()));
  }
  vector.attached = attached;
  return {};
}

void MessageVectors::Update(uint32_t first, std::span<const std::optional<Message>> wanted) {
  CHECK(enabled_ && first + wanted.size() <= vectors_.size());
  const Result<> routed = RouteAll(first, wanted);
  if (!routed) Complain("route an interrupt", routed.error());
  // A vector is attached before the device may signal it, so that nothing has to wait.
  for (uint32_t i = 0; i < wanted.size(); ++i) {
    Vector& vector = vectors_[first + i];
    if (!vector.event.valid()) continue;
    const Result<> set = SetAttached(vector, wanted[i].has_value() && vector.route == wanted[i]);
    if (!set) Complain("attach an interrupt", set.error());
  }
  const Result<> given = GiveToDevice(first, first + static_cast<uint32_t>(wanted.size()));
  if (!given) Complain("set the device's interrupts", given.error());
}

bool MessageVectors::Pending(uint32_t vector) const {
  const Vector& v = vectors_[vector];
  return v.event.valid() && !v.attached && sys::IsReadable(v.event.get());
}

}  // namespace crossbar
