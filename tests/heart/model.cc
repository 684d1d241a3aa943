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

bool Model::Overlaps(uint64_t id, const Placement& placement) const {
  const auto has = [](const Placement& of, GuestRange range) {
    if (of.whole.size != 0) return of.whole.Overlaps(range);
    return std::ranges::any_of(of.pieces, [&](const auto& p) { return p.range.Overlaps(range); });
  };
  // Only pieces are pinned, so what is gone is whole pieces.
  for (const auto& [name, range] : gone_) {
    if (has(placement, range)) return true;
  }
  return std::ranges::any_of(records_, [&](const auto& entry) {
    const Placement& other = entry.second.placement;
    if (entry.first >= id) return false;
    if (other.whole.size != 0) return has(placement, other.whole);
    return std::ranges::any_of(other.pieces, [&](const auto& p) { return has(placement, p.range); });
  });
}

std::set<Gpa> Model::StuckIn(const FakeDomain& fake) const {
  const auto found = stuck_.find(fake.number());
  return found == stuck_.end() ? std::set<Gpa>{} : found->second;
}

Model::Domain* Model::FindDomain(int number) {
  const auto found = std::ranges::find_if(
      domains_, [&](const Domain& domain) {
        return domain.fake != nullptr && domain.fake->number() == number;
      });
  return found == domains_.end() ? nullptr : &*found;
}

bool Model::ReadState(Domain& domain, Cursor& cursor) {
  const Event& event = cursor.Take("what the domain says of its state");
  if (event.kind != Kind::kState || event.domain != domain.fake->number()) {
    Differ("its state should be asked: {}", event.ToString());
  }
  if (event.outcome == Outcome::kOk) return true;
  End(domain,
      event.outcome == Outcome::kGone ? DmaDomain::State::kGone : DmaDomain::State::kLost);
  return false;
}

void Model::End(Domain& domain, DmaDomain::State state) {
  if (state == DmaDomain::State::kGone) {
    coverage_.Count("domain gone");
  } else {
    // One that only does not answer reaches all that it was ever given.
    coverage_.Count("domain lost");
    for (const Gpa start : domain.mapped) Keep(domain, start);
  }
  domain.ended = true;
  domain.mapped.clear();
  domain.bars.clear();
  stuck_.erase(domain.fake->number());
  domain.fake->Forbid();
  changed_ = true;
}

void Model::Keep(Domain& domain, Gpa start) {
  const auto placing = placing_.find(start);
  const Live& piece = placing != placing_.end() ? placing->second : live_.at(start);
  Kept kept;
  if (piece.backing.kind == Backing::Kind::kRam) {
    kept.target = "guest RAM";
  } else {
    kept.target = piece.backing.owner->bar_owner_name();
    kept.bar = piece.backing.bar;
    kept.bar_offset = piece.backing.bar_offset;
  }
  kept.range = piece.range;
  kept.cell = Cell{State::kUnrevoked, "the server is lost", {}};
  for (Kept& before : domain.kept) {
    if (before.target != kept.target || before.bar != kept.bar ||
        before.bar_offset != kept.bar_offset) {
      continue;
    }
    // The same memory at another place.
    coverage_.Count("kept elsewhere too");
    kept.cell.text = "the server is lost, here and elsewhere";
    before = kept;
    return;
  }
  domain.kept.push_back(kept);
}

// A domain that leaves is forgotten, but for what it may still reach.
void Model::Leave(Domain& domain) {
  if (!domain.kept.empty()) coverage_.Count("left with what it keeps");
  domain.fake->Forbid();
  domain.fake = nullptr;
  domain.mapped.clear();
  domain.bars.clear();
  std::erase_if(domains_, [](const Domain& other) {
    return other.fake == nullptr && other.kept.empty();
  });
}

bool Model::AddDomain(FakeDomain& fake, Cursor& cursor) {
  may_count_ = true;
  Domain& domain = domains_.emplace_back();
  domain.fake = &fake;
  domain.name = fake.name();
  std::vector<Unmap> mapped;
  std::optional<DmaDomain::Deadline> deadline;
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
    if (deadline.value_or(event.deadline) != event.deadline) Differ("a replay of two deadlines");
    deadline = event.deadline;
    const bool bar = piece.backing.kind == Backing::Kind::kBar;
    if (event.outcome == Outcome::kOk) {
      domain.mapped.insert(start);
      if (bar) domain.bars[start] = Cell{State::kMapped, event.text, {}};
      mapped.push_back({&fake, piece.range});
      continue;
    }
    // It may have got as far as to map it.
    domain.mapped.insert(start);
    if (!ReadState(domain, cursor)) {
      coverage_.Count("replay: domain ended");
      Leave(domain);
      return false;
    }
    domain.mapped.erase(start);
    if (!bar) {
      failed = true;
      break;
    }
    coverage_.Count("replay: BAR refused");
    domain.bars[start] = Cell{State::kRefused, event.text, {}};
  }
  if (failed) {
    coverage_.Count("replay: RAM refused");
    ReadUnmaps(mapped, 0, cursor);
    changed_ = false;  // It never joined.
    Leave(domain);
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
  coverage_.Count(domain->ended            ? "ended domain left"
                  : domain->mapped.empty() ? "empty domain left"
                                           : "domain left");
  std::vector<Unmap> unmaps;
  unmaps.reserve(domain->mapped.size());
  for (const Gpa start : domain->mapped) unmaps.push_back({&fake, live_.at(start).range});
  changed_ = changed_ || !domain->mapped.empty();
  ReadUnmaps(unmaps, 0, cursor);
  cursor.End();
  Leave(*domain);
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
  std::map<Gpa, unsigned> tries;
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
    const bool again = ++tries[event.range.start] < tries_ && event.outcome != Outcome::kOk;
    if (again) continue;
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
