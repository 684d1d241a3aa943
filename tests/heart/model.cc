// The model's books, and the operations on domains, demotions and pins. Placing and zapping:
// model_trace.cc.
#include "tests/heart/model.h"

#include <algorithm>

namespace crossbar::heart {

using Kind = Event::Kind;
using Outcome = Event::Outcome;
using State = P2pMatrix::Cell::State;

const Event& Cursor::Take(const char* expected) {
  if (next_ == trace_.size()) Differ("the calls end, and there should be {}", expected);
  return trace_[next_++];
}

void Cursor::End() const {
  if (next_ != trace_.size()) {
    Differ("call {} should not be there: {}", next_, trace_[next_].ToString());
  }
}

bool Model::IsLive(uint64_t id) const {
  const auto found = records_.find(id);
  return found != records_.end() && found->second.live;
}

const Model::Live* Model::Find(Gpa address) const {
  auto after = live_.upper_bound(address);
  if (after == live_.begin()) return nullptr;
  const Live& piece = std::prev(after)->second;
  return piece.range.Contains(address) ? &piece : nullptr;
}

bool Model::Overlaps(const Placement& placement) const {
  for (const AddressSpace::Piece& piece : placement.pieces) {
    for (const auto& [start, other] : live_) {
      if (other.range.Overlaps(piece.range)) return true;
    }
    for (const auto& [name, range] : gone_) {
      if (range.Overlaps(piece.range)) return true;
    }
  }
  return false;
}

std::set<Gpa> Model::StuckIn(const FakeDomain& fake) const {
  const auto found = stuck_.find(fake.number());
  return found == stuck_.end() ? std::set<Gpa>{} : found->second;
}

Model::Domain* Model::FindDomain(int number) {
  const auto found = std::ranges::find_if(
      domains_, [&](const Domain& domain) { return domain.fake->number() == number; });
  return found == domains_.end() ? nullptr : &*found;
}

void Model::Bury(Domain& domain) {
  if (domain.dead) return;
  domain.dead = true;
  domain.mapped.clear();
  domain.bars.clear();
  // A server that is gone reaches nothing any more, whatever it answered before.
  domain.unrevoked.clear();
  stuck_.erase(domain.fake->number());
  domain.fake->Forbid();
  changed_ = true;
}

void Model::NoteUnrevoked(Domain& domain, GuestRange range) {
  const auto found = leaving_.find(range.start);
  if (found == leaving_.end() || found->second.backing.kind != Backing::Kind::kBar) return;
  const Backing& backing = found->second.backing;
  // What it kept before at the same place is the same thing.
  std::erase_if(domain.unrevoked, [&](const auto& other) {
    const Unrevoked& kept = other.second;
    return kept.range == range && kept.backing.bar == backing.bar &&
           kept.backing.bar_offset == backing.bar_offset &&
           kept.backing.owner->bar_owner_name() == backing.owner->bar_owner_name();
  });
  domain.unrevoked.emplace(range.start, Unrevoked{range, backing, Cell{State::kUnrevoked, "", {}}});
  changed_ = true;
}

bool Model::AddDomain(FakeDomain& fake, Cursor& cursor) {
  may_count_ = true;
  Domain domain;
  domain.fake = &fake;
  std::vector<Unmap> mapped;
  bool failed = false;
  // In order of address.
  for (const auto& [start, piece] : live_) {
    if (!piece.backing.peers_may_map) {
      domain.bars[start] = Cell{State::kRefused, "", {}};
      continue;
    }
    const Event& event = cursor.Take("a map of the replay");
    if (event.kind != Kind::kMap || event.domain != fake.number() || event.range != piece.range ||
        !SameBacking(event.backing, piece.backing)) {
      Differ("the replay should map {}, and does: {}", piece.range, event.ToString());
    }
    const bool bar = piece.backing.kind == Backing::Kind::kBar;
    if (event.outcome == Outcome::kOk) {
      domain.mapped.insert(start);
      if (bar) domain.bars[start] = Cell{State::kMapped, event.text, {}};
      mapped.push_back({&fake, piece.range});
      continue;
    }
    const Event& alive = cursor.Take("alive() after a map that failed");
    if (alive.kind != Kind::kAlive || alive.domain != fake.number()) {
      Differ("after a map that failed: {}", alive.ToString());
    }
    if (alive.outcome != Outcome::kOk) {
      coverage_.Count("domain dead at replay");
      fake.Forbid();
      return false;
    }
    if (!bar) {
      failed = true;
      break;
    }
    coverage_.Count("replay: BAR refused");
    domain.bars[start] = Cell{State::kRefused, event.text, {}};
  }
  domains_.push_back(std::move(domain));
  if (failed) {
    coverage_.Count("replay: RAM refused");
    leaving_ = live_;
    ReadUnmaps(mapped, 0, cursor);
    leaving_.clear();
    domains_.pop_back();
    changed_ = false;  // It never joined.
    return false;
  }
  coverage_.Count(live_.empty() ? "domain joined an empty space"
                                : "domain joined, pieces replayed");
  changed_ = changed_ || !live_.empty();
  return true;
}

void Model::EndDomain(FakeDomain& fake, Cursor& cursor) {
  may_count_ = true;
  Domain* domain = FindDomain(fake.number());
  if (domain == nullptr) Differ("the model has lost {}", fake.name());
  coverage_.Count(domain->dead             ? "dead domain left"
                  : domain->mapped.empty() ? "empty domain left"
                                           : "domain left");
  if (!domain->dead) {
    std::vector<Unmap> unmaps;
    unmaps.reserve(domain->mapped.size());
    for (const Gpa start : domain->mapped) unmaps.push_back({&fake, live_.at(start).range});
    leaving_ = live_;
    changed_ = changed_ || !domain->mapped.empty();
    ReadUnmaps(unmaps, 0, cursor);
    leaving_.clear();
  }
  cursor.End();
  fake.Forbid();
  std::erase_if(domains_, [&](const Domain& other) { return other.fake == &fake; });
}

void Model::MarkDead(FakeDomain& fake) {
  Domain* domain = FindDomain(fake.number());
  if (domain == nullptr) return;
  coverage_.Count(domain->dead ? "marked dead again" : "marked dead");
  Bury(*domain);
}

size_t Model::BeginDemotion(Cursor& cursor) {
  may_count_ = true;
  std::set<uint32_t> numbers;
  for (const auto& [start, piece] : live_) {
    if (piece.backing.kind == Backing::Kind::kBar && piece.slot) numbers.insert(*piece.slot);
  }
  coverage_.Count(demotions_ == 0 ? "demoted" : "demoted, nested");
  ++demotions_;
  ReadRemovals(numbers, {}, cursor);
  cursor.End();
  size_t demoted = 0;
  for (auto& [start, piece] : live_) {
    if (piece.backing.kind != Backing::Kind::kBar || piece.backing.host.value() == 0) continue;
    if (piece.slot && slots_.contains(*piece.slot)) coverage_.Count("demotion: slot stuck");
    // One that is stuck is KVM's alone from now on: the VM stops.
    piece.slot.reset();
    ++demoted;
  }
  return demoted;
}

void Model::EndDemotion(Cursor& cursor) {
  may_count_ = true;
  if (--demotions_ != 0) return cursor.End();
  std::set<Gpa> missing;
  for (const auto& [start, piece] : live_) {
    if (piece.backing.host.value() != 0 && !piece.slot) missing.insert(start);
  }
  while (!missing.empty()) {
    const Event& event = cursor.Take("a slot that comes back after a demotion");
    const auto found = missing.find(event.range.start);
    if (event.kind != Kind::kSlotAdd || found == missing.end()) {
      Differ("no slot of a demotion: {}", event.ToString());
    }
    Live& piece = live_.at(event.range.start);
    if (event.range != piece.range || event.host != piece.backing.host ||
        event.read_only == piece.backing.writable) {
      Differ("the slot comes back as another: {}", event.ToString());
    }
    missing.erase(found);
    if (event.outcome == Outcome::kOk) {
      const auto number = static_cast<uint32_t>(event.id);
      piece.slot = number;
      slots_[number] = Memslot{number, event.range, event.host, event.read_only};
      coverage_.Count("demotion: slot back");
    } else {
      coverage_.Count("demotion: slot did not come back");
    }
  }
  cursor.End();
}

void Model::Unpin(uint64_t piece) {
  const auto found = pins_.find(piece);
  if (found == pins_.end()) Differ("the model has lost a pin");
  pins_.erase(found);
  if (!pins_.contains(piece)) gone_.erase(piece);
}

}  // namespace crossbar::heart
