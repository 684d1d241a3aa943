#include "tests/heart/fakes.h"

#include <algorithm>

namespace crossbar::heart {
namespace {

using Kind = Event::Kind;
using Outcome = Event::Outcome;

bool PageAligned(GuestRange range) {
  return IsAligned(range.start.value(), kPageSize) && IsAligned(range.size, kPageSize) &&
         !range.empty();
}

// As kvm_main.c, ioeventfd_check_collision.
bool Collide(const IoEvent& a, const IoEvent& b) {
  return a.address == b.address && (a.size == 0 || b.size == 0 || a.size == b.size) &&
         (!a.datamatch || !b.datamatch || *a.datamatch == *b.datamatch);
}

}  // namespace

Result<uint32_t> FakeKvm::Add(GuestRange range, Hva host, bool read_only) {
  Event event(Kind::kSlotAdd);
  event.range = range;
  event.host = host;
  event.read_only = read_only;
  if (!PageAligned(range)) world_.Violation(fmt::format("memslot {} is not whole pages", range));
  if (host.value() == 0) world_.Violation(fmt::format("memslot {} without a host address", range));
  Error error(EINVAL, "KVM_SET_USER_MEMORY_REGION: injected");
  event.outcome = world_.Fate(Kind::kSlotAdd, -1, range.start.value());
  for (const auto& [number, slot] : slots_) {
    if (!slot.range.Overlaps(range)) continue;
    event.outcome = Outcome::kFailed;
    error = Error(EEXIST, "KVM_SET_USER_MEMORY_REGION: overlap");
  }
  if (slots_.size() == kLimit) {
    event.outcome = Outcome::kFailed;
    error = Error(ENOSPC, "no memslot free");
  }
  uint32_t number = 0;
  while (slots_.contains(number)) ++number;
  event.id = number;
  const bool ok = event.outcome == Outcome::kOk;
  if (ok) slots_[number] = Memslot{number, range, host, read_only};
  world_.Record(std::move(event));
  if (!ok) return std::unexpected(error);
  return number;
}

Result<> FakeKvm::Remove(uint32_t number) {
  Event event(Kind::kSlotRemove);
  event.id = number;
  const auto found = slots_.find(number);
  if (found == slots_.end()) {
    world_.Violation(fmt::format("memslot {} removed, and there is none", number));
    return std::unexpected(Error(ENOENT, "no such slot"));
  }
  event.range = found->second.range;
  event.outcome = world_.Fate(Kind::kSlotRemove, -1, event.range.start.value());
  const bool ok = event.outcome == Outcome::kOk;
  // What is asked from within must see the slot gone.
  if (ok) slots_.erase(found);
  world_.Record(std::move(event));
  if (!ok) return std::unexpected(Error(ENOMEM, "KVM_SET_USER_MEMORY_REGION: injected"));
  return {};
}

Result<> FakeKvm::AddIoEvent(const IoEvent& io) {
  Event event(Kind::kIoAdd);
  event.io = io;
  event.outcome = world_.Fate(Kind::kIoAdd, -1, io.address.value());
  const bool collides =
      std::ranges::any_of(events_, [&](const IoEvent& other) { return Collide(io, other); });
  if (collides) event.outcome = Outcome::kFailed;
  const bool ok = event.outcome == Outcome::kOk;
  if (ok) events_.push_back(io);
  world_.Record(std::move(event));
  if (!ok) return std::unexpected(Error(collides ? EEXIST : ENOSPC, "KVM_IOEVENTFD: refused"));
  return {};
}

Result<> FakeKvm::RemoveIoEvent(const IoEvent& io) {
  Event event(Kind::kIoRemove);
  event.io = io;
  event.outcome = world_.Fate(Kind::kIoRemove, -1, io.address.value());
  const auto found =
      std::ranges::find_if(events_, [&](const IoEvent& other) { return SameEvent(io, other); });
  if (found == events_.end()) {
    world_.Violation(fmt::format("ioeventfd {} removed, and there is none", Describe(io)));
    return std::unexpected(Error(ENOENT, "no such ioeventfd"));
  }
  const bool ok = event.outcome == Outcome::kOk;
  if (ok) events_.erase(found);
  world_.Record(std::move(event));
  if (!ok) return std::unexpected(Error(EINVAL, "KVM_IOEVENTFD: injected"));
  return {};
}

std::vector<Memslot> FakeKvm::Slots() const {
  std::vector<Memslot> slots;
  slots.reserve(slots_.size());
  for (const auto& [number, slot] : slots_) slots.push_back(slot);
  return slots;
}

std::optional<std::string> FakeDomain::Refuses(GuestRange range, const Backing& backing) const {
  if (backing.kind == Backing::Kind::kRam) return std::nullopt;
  if (rules_.needs_host && backing.host.value() == 0) return "no host address";
  if (rules_.needs_dma_buf && !backing.dma_buf) return "no dma-buf";
  if (rules_.needs_file && !backing.file) return "no file";
  if (range.last().value() > rules_.bar_limit) return "the IOVA is outside its ranges";
  const auto bars = std::ranges::count_if(
      mapped_, [](const auto& entry) { return entry.second.backing.kind == Backing::Kind::kBar; });
  if (static_cast<size_t>(bars) >= rules_.max_bars) return "its limit is reached";
  return std::nullopt;
}

Result<std::string> FakeDomain::Map(GuestRange range, const Backing& backing,
                                    Deadline deadline) {
  Event event(Kind::kMap, number_);
  event.range = range;
  event.backing = backing;
  event.deadline = deadline;
  if (forbidden_) world_.Violation(fmt::format("map {} in {}, which is gone", range, name()));
  if (!PageAligned(range)) world_.Violation(fmt::format("map {}: not whole pages", range));
  if (backing.kind == Backing::Kind::kBar && !backing.peers_may_map) {
    world_.Violation(fmt::format("map {} in {}: p2p=off", range, name()));
  }
  event.outcome = world_.Fate(Kind::kMap, number_, range.start.value());
  if (event.outcome == Outcome::kGone) EndAs(State::kGone);
  const bool hung = event.outcome == Outcome::kHung;
  if (hung) End();
  event.text = "injected";
  if (const auto why = Refuses(range, backing)) {
    event.text = *why;
    event.outcome = Outcome::kFailed;
  }
  for (const auto& [start, other] : mapped_) {
    if (!other.range.Overlaps(range)) continue;
    event.text = "EEXIST";
    event.outcome = Outcome::kFailed;
  }
  if (ended()) {
    event.text = hung ? "no answer in time" : "ended";
    event.outcome = hung ? Outcome::kHung : Ending();
  }
  if (event.outcome == Outcome::kOk) {
    event.text = backing.dma_buf ? "dma-buf" : backing.file ? "fd" : "mmap";
    mapped_[range.start] = Mapped{range, backing, range.size};
  }
  const bool ok = event.outcome == Outcome::kOk;
  std::string text = event.text;
  world_.Record(std::move(event));
  if (!ok) return std::unexpected(Error(EINVAL, fmt::format("because {}", text)));
  return text;
}

DmaDomain::State FakeDomain::state() const {
  Event event(Kind::kState, number_);
  event.outcome = Ending();
  world_.Record(std::move(event));
  return state_;
}

Event::Outcome FakeDomain::Ending() const {
  return state_ == State::kServing ? Outcome::kOk
         : state_ == State::kGone  ? Outcome::kGone
                                   : Outcome::kLost;
}

DmaDomain::UnmapTicket FakeDomain::StartUnmap(GuestRange range) {
  const UnmapTicket ticket = next_ticket_++;
  if (forbidden_) world_.Violation(fmt::format("unmap {} in {}, which is gone", range, name()));
  const auto found = mapped_.find(range.start);
  if (!ended() && (found == mapped_.end() || found->second.range != range)) {
    world_.Violation(fmt::format("unmap {} in {}, which has no such mapping", range, name()));
  }
  for (const auto& [other, started] : tickets_) {
    if (started == range) world_.Violation(fmt::format("unmap {} is under way twice", range));
  }
  tickets_[ticket] = range;
  Event event(Kind::kStartUnmap, number_);
  event.id = ticket;
  event.range = range;
  world_.Record(std::move(event));
  return ticket;
}

DmaDomain::Unmapped FakeDomain::AwaitUnmap(UnmapTicket ticket, Deadline deadline) {
  const auto found = tickets_.find(ticket);
  if (found == tickets_.end()) {
    world_.Violation(fmt::format("ticket {} of {} awaited twice, or none of its", ticket, name()));
    return {};
  }
  const GuestRange range = found->second;
  tickets_.erase(found);
  Event event(Kind::kAwaitUnmap, number_);
  event.id = ticket;
  event.range = range;
  event.deadline = deadline;
  event.outcome = world_.Fate(Kind::kAwaitUnmap, number_, range.start.value());
  if (event.outcome == Outcome::kHung || event.outcome == Outcome::kLost) End();
  if (event.outcome == Outcome::kGone) EndAs(State::kGone);
  if (ended()) event.outcome = Ending();
  const auto mapped = mapped_.find(range.start);
  if (mapped != mapped_.end() && event.outcome == Outcome::kOk) {
    event.bytes = mapped->second.left;
  } else if (mapped != mapped_.end() && event.outcome == Outcome::kShort) {
    event.bytes = mapped->second.left - kPageSize;
    mapped->second.left = kPageSize;
  }
  if (event.outcome == Outcome::kOk) mapped_.erase(range.start);
  Unmapped result;
  result.bytes = event.bytes;
  switch (event.outcome) {
    case Outcome::kOk:
    case Outcome::kShort:
      break;
    case Outcome::kGone:
    case Outcome::kLost:
    case Outcome::kHung:
      result.state = Unmapped::State::kEnded;
      break;
    case Outcome::kFailed:
      result.state = Unmapped::State::kFailed;
      result.error = Error(EBUSY, "injected");
      break;
  }
  world_.Record(std::move(event));
  return result;
}

void FakeDomain::EndAs(State state) {
  if (ended()) return;
  state_ = state;
  if (state == State::kGone) mapped_.clear();
}

}  // namespace crossbar::heart
