#include "tests/heart/world.h"

#include <bit>

#include "base/check.h"

namespace crossbar::heart {

uint64_t Mix(uint64_t a, uint64_t b) {
  // splitmix64 over both.
  uint64_t z = a + 0x9e3779b97f4a7c15 * (b + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Rng::Rng(uint64_t seed) {
  for (size_t i = 0; i < state_.size(); ++i) state_[i] = Mix(seed, i);
}

uint64_t Rng::Next() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

std::string Event::ToString() const {
  static constexpr const char* kOutcomes[] = {"ok", "FAILED", "SHORT", "GONE", "LOST", "HUNG"};
  const char* end = kOutcomes[static_cast<size_t>(outcome)];
  switch (kind) {
    case Kind::kSlotAdd:
      return fmt::format("slot {} add {} at host {:#x}{}: {}", id, range, host.value(),
                         read_only ? " ro" : "", end);
    case Kind::kSlotRemove:
      return fmt::format("slot {} remove {}: {}", id, range, end);
    case Kind::kIoAdd:
      return fmt::format("ioeventfd add {}: {}", Describe(io), end);
    case Kind::kIoRemove:
      return fmt::format("ioeventfd remove {}: {}", Describe(io), end);
    case Kind::kMap:
      return fmt::format("domain {} map {} {}: {} ({})", domain, range, Describe(backing), end,
                         text);
    case Kind::kState:
      return fmt::format("domain {} state: {}", domain, end);
    case Kind::kStartUnmap:
      return fmt::format("domain {} start unmap {} ticket {}", domain, range, id);
    case Kind::kAwaitUnmap:
      return fmt::format("domain {} await {} ticket {}: {}", domain, range, id, end);
    case Kind::kUnsafe:
      return fmt::format("on_unsafe: {}", text);
  }
  return "?";
}

void World::StartOperation(std::vector<Fault> plan) {
  trace.clear();
  faults = std::move(plan);
  calls_ = {};
}

Event::Outcome World::Fate(Event::Kind kind, int domain, uint64_t key) {
  const unsigned n = calls_[static_cast<size_t>(kind)]++;
  for (Fault& fault : faults) {
    if (fault.kind != kind || fault.times == 0) continue;
    if (!fault.armed && fault.nth == n) {
      fault.armed = true;
      fault.domain = domain;
      fault.key = key;
    }
    if (!fault.armed || fault.domain != domain || fault.key != key) continue;
    --fault.times;
    return fault.outcome;
  }
  return Event::Outcome::kOk;
}

void World::Record(Event event) {
  hash = Mix(hash, static_cast<uint64_t>(event.kind) * 16 + static_cast<uint64_t>(event.outcome));
  hash = Mix(hash, static_cast<uint64_t>(event.domain) ^ event.id << 8);
  hash = Mix(hash, event.range.start.value() ^ std::rotl(event.range.size, 17));
  hash = Mix(hash, event.host.value() ^ event.io.address.value());
  ++events;
  event.time = std::chrono::steady_clock::now();
  if (trace.size() == 20'000) Violation("an operation that does not end");
  if (trace.size() > 20'100) CHECK(false, "an operation that does not end");
  trace.push_back(std::move(event));
  if (probe) probe(trace.back());
}

void World::Violation(std::string what) {
  violations.push_back(std::move(what));
}

bool SameBacking(const Backing& a, const Backing& b) {
  const auto same = [](const std::optional<Backing::Handle>& x,
                       const std::optional<Backing::Handle>& y) {
    return x.has_value() == y.has_value() && (!x || (x->fd == y->fd && x->offset == y->offset));
  };
  return a.kind == b.kind && a.writable == b.writable && a.host == b.host && same(a.file, b.file) &&
         same(a.dma_buf, b.dma_buf) && a.owner == b.owner && a.bar == b.bar &&
         a.bar_offset == b.bar_offset && a.bar_physical == b.bar_physical &&
         a.peers_may_map == b.peers_may_map;
}

bool SameEvent(const IoEvent& a, const IoEvent& b) {
  return a.address == b.address && a.size == b.size && a.datamatch == b.datamatch &&
         a.eventfd == b.eventfd;
}

std::string Describe(const IoEvent& event) {
  return fmt::format("{}/{}{} fd {}", event.address, event.size,
                     event.datamatch ? fmt::format("={:#x}", *event.datamatch) : "", event.eventfd);
}

std::string Describe(const Backing& backing) {
  std::string text =
      backing.kind == Backing::Kind::kRam ? "ram" : fmt::format("bar{}", backing.bar);
  if (!backing.writable) text += " ro";
  if (backing.host.value() != 0) text += fmt::format(" host {:#x}", backing.host.value());
  if (backing.file) text += fmt::format(" file {}+{:#x}", backing.file->fd, backing.file->offset);
  if (backing.dma_buf)
    text += fmt::format(" dmabuf {}+{:#x}", backing.dma_buf->fd, backing.dma_buf->offset);
  if (!backing.peers_may_map) text += " p2p=off";
  return text;
}

}  // namespace crossbar::heart
