// The rules that the calls of a map and of a zap have to keep: G1, G2, G3, G5, G6 and G9.
#include <algorithm>

#include "tests/heart/model.h"

namespace crossbar::heart {

using Kind = Event::Kind;
using Outcome = Event::Outcome;
using State = P2pMatrix::Cell::State;

Model::Placed Model::Map(uint64_t id, const Placement& placement, bool may_claim, Cursor& cursor) {
  if (Overlaps(id, placement)) {
    cursor.End();  // G9: nothing was tried.
    if (!may_claim) {
      coverage_.Count("map: overlap");
      return Placed::kOverlap;
    }
    coverage_.Count("map: became a claim");
    records_[id] = Record{placement, false};
    claims_.push_back(id);
    return Placed::kClaim;
  }
  records_[id] = Record{placement, false};
  const bool placed = Place(id, cursor);
  cursor.End();
  if (!placed) records_.erase(id);
  return placed ? Placed::kYes : Placed::kRefused;
}

bool Model::Place(uint64_t id, Cursor& cursor) {
  Record& record = records_.at(id);
  const Placement& placement = record.placement;
  Attempt attempt{.placement = placement,
                  .slots = {},
                  .events = {},
                  .mapped = {},
                  .slot_done = std::vector<bool>(placement.pieces.size()),
                  .event_done = std::vector<bool>(placement.events.size())};
  attempt.slots.resize(placement.pieces.size());
  for (const auto& [range, backing] : placement.pieces)
    placing_[range.start] = Live{0, 0, range, backing, {}};
  const bool placed = PlaceSlots(attempt, cursor) && PlaceDma(attempt, cursor);
  if (!placed) RollBack(attempt, cursor);
  placing_.clear();
  if (!placed) return false;
  for (size_t i = 0; i < placement.pieces.size(); ++i) {
    const auto& [range, backing] = placement.pieces[i];
    live_[range.start] = Live{id, next_piece_++, range, backing, attempt.slots[i]};
    if (backing.host.value() == 0) coverage_.Count("placed: piece without a host address");
  }
  if (!placement.events.empty()) coverage_.Count("placed: with ioeventfds");
  if (placement.pieces.empty()) coverage_.Count("placed: trapped only");
  coverage_.Count("placed");
  record.live = true;
  changed_ = true;
  return true;
}

// G1: slots and ioeventfds, all of them, before any DMA.
bool Model::PlaceSlots(Attempt& attempt, Cursor& cursor) {
  const Placement& placement = attempt.placement;
  size_t left = placement.events.size();
  for (size_t i = 0; i < placement.pieces.size(); ++i) {
    attempt.slot_done[i] = placement.pieces[i].backing.host.value() == 0;
    if (!attempt.slot_done[i]) ++left;
  }
  for (; left != 0; --left) {
    const Event& event = cursor.Take("a slot or ioeventfd of a placement");
    bool known = false;
    if (event.kind == Kind::kSlotAdd) {
      for (size_t i = 0; i < placement.pieces.size() && !known; ++i) {
        const auto& [range, backing] = placement.pieces[i];
        if (attempt.slot_done[i] || range != event.range || backing.host != event.host ||
            backing.writable == event.read_only) {
          continue;
        }
        known = attempt.slot_done[i] = true;
        if (event.outcome != Outcome::kOk) {
          coverage_.Count("place: slot refused");
          return false;
        }
        const auto number = static_cast<uint32_t>(event.id);
        attempt.slots[i] = number;
        slots_[number] = Memslot{number, range, event.host, event.read_only};
      }
    } else if (event.kind == Kind::kIoAdd) {
      for (size_t i = 0; i < placement.events.size() && !known; ++i) {
        if (attempt.event_done[i] || !SameEvent(placement.events[i], event.io)) continue;
        known = attempt.event_done[i] = true;
        if (event.outcome != Outcome::kOk) {
          coverage_.Count("place: ioeventfd refused");
          return false;
        }
        attempt.events.push_back(event.io);
        events_.push_back(event.io);
      }
    }
    if (!known) Differ("not a slot or ioeventfd of the placement (G1): {}", event.ToString());
  }
  return true;
}

bool Model::PlaceDma(Attempt& attempt, Cursor& cursor) {
  std::vector<std::pair<int, const AddressSpace::Piece*>> wanted;
  for (Domain& domain : domains_) {
    if (domain.fake == nullptr || domain.ended) continue;
    for (const AddressSpace::Piece& piece : attempt.placement.pieces) {
      if (piece.backing.peers_may_map) {
        wanted.emplace_back(domain.fake->number(), &piece);
      } else {
        coverage_.Count("place: p2p=off");
        domain.bars[piece.range.start] = Cell{State::kRefused, "", {}};
      }
    }
  }
  std::map<int, DmaDomain::Deadline> deadlines;
  while (!wanted.empty()) {
    const Event& event = cursor.Take("a DMA map of a placement");
    const auto want = std::ranges::find_if(wanted, [&](const auto& other) {
      return event.domain == other.first && event.range == other.second->range &&
             SameBacking(event.backing, other.second->backing);
    });
    if (event.kind != Kind::kMap || want == wanted.end()) {
      Differ("not a DMA map of the placement: {}", event.ToString());
    }
    if (deadlines.try_emplace(event.domain, event.deadline).first->second != event.deadline)
      Differ("a domain with two deadlines for one placement");
    const AddressSpace::Piece& piece = *want->second;
    wanted.erase(want);
    Domain& domain = *FindDomain(event.domain);
    const bool go_on = PlaceDmaPiece(event, piece, domain, cursor);
    if (domain.ended) {
      // What it had mapped of this placement went with it.
      std::erase_if(wanted, [&](const auto& other) { return other.first == event.domain; });
      std::erase_if(attempt.mapped,
                    [&](const Unmap& unmap) { return unmap.domain == domain.fake; });
    } else if (event.outcome == Outcome::kOk) {
      attempt.mapped.push_back({domain.fake, piece.range});
    }
    if (!go_on) return false;
  }
  return true;
}

// False where the placement fails.
bool Model::PlaceDmaPiece(const Event& event, const AddressSpace::Piece& piece, Domain& domain,
                          Cursor& cursor) {
  const Gpa start = piece.range.start;
  const bool bar = piece.backing.kind == Backing::Kind::kBar;
  if (event.outcome == Outcome::kOk) {
    domain.mapped.insert(start);
    if (bar) domain.bars[start] = Cell{State::kMapped, event.text, {}};
    return true;
  }
  // It may have got as far as to map it.
  domain.mapped.insert(start);
  if (!ReadState(domain, cursor)) {
    // It has no devices left that could miss the RAM.
    coverage_.Count(bar ? "place: domain ended at a BAR" : "place: domain ended at RAM");
    return true;
  }
  domain.mapped.erase(start);
  coverage_.Count(bar ? "place: BAR refused" : "place: RAM refused");
  if (bar) domain.bars[start] = Cell{State::kRefused, event.text, {}};
  return bar;  // G6
}

// G3, in the order of G2.
void Model::RollBack(Attempt& attempt, Cursor& cursor) {
  if (!attempt.mapped.empty()) coverage_.Count("rolled back: DMA");
  ReadUnmaps(attempt.mapped, 0, cursor);
  for (const AddressSpace::Piece& piece : attempt.placement.pieces) {
    for (Domain& domain : domains_) {
      domain.mapped.erase(piece.range.start);
      domain.bars.erase(piece.range.start);
    }
  }
  std::set<uint32_t> numbers;
  for (const auto& number : attempt.slots) {
    if (number) numbers.insert(*number);
  }
  if (!numbers.empty() || !attempt.events.empty()) coverage_.Count("rolled back: slots");
  ReadRemovals(numbers, attempt.events, cursor);
}

void Model::Zap(const std::set<uint64_t>& ids, Cursor& cursor) {
  std::vector<Unmap> unmaps;
  std::set<uint32_t> numbers;
  std::vector<IoEvent> events;
  std::vector<Gpa> starts;
  size_t stuck_pins = 0;
  size_t live = 0;
  for (const uint64_t id : ids) {
    const Record& record = records_.at(id);
    if (!record.live) continue;
    ++live;
    events.insert(events.end(), record.placement.events.begin(), record.placement.events.end());
    for (const AddressSpace::Piece& piece : record.placement.pieces) {
      const Live& placed = live_.at(piece.range.start);
      starts.push_back(piece.range.start);
      if (placed.slot) numbers.insert(*placed.slot);
      if (piece.backing.host.value() != 0 && !placed.slot) coverage_.Count("zap: demoted piece");
      if (pins_.contains(placed.piece)) ++stuck_pins;
      for (const Domain& domain : domains_) {
        if (domain.mapped.contains(piece.range.start)) unmaps.push_back({domain.fake, piece.range});
      }
    }
  }
  coverage_.Count(ids.empty() ? "zap: nothing"
                  : live == 0 ? "zap: claims only"
                  : live == 1 ? "zap: one"
                              : "zap: several");
  std::erase_if(claims_, [&](uint64_t id) { return ids.contains(id); });
  if (live != 0) {
    changed_ = true;
    // G2: all DMA of all of them, in all domains, then all slots.
    ReadUnmaps(unmaps, stuck_pins, cursor);
    ReadRemovals(numbers, events, cursor);
    for (const Gpa start : starts) {
      const Live& piece = live_.at(start);
      if (pins_.contains(piece.piece)) {
        gone_[piece.piece] = piece.range;
        coverage_.Count("zap: pin stuck");
      }
      for (Domain& domain : domains_) {
        domain.mapped.erase(start);
        domain.bars.erase(start);
      }
      live_.erase(start);
    }
  }
  for (const uint64_t id : ids) records_.erase(id);
  if (!ids.empty()) PlaceClaims(cursor);
  cursor.End();
}

// In the order of claiming, those that nobody is in the way of any more.
void Model::PlaceClaims(Cursor& cursor) {
  std::vector<uint64_t> waiting;
  size_t tried = 0;
  for (const uint64_t id : claims_) {
    if (Overlaps(id, records_.at(id).placement)) {
      coverage_.Count("claim: waits on");
      waiting.push_back(id);
      continue;
    }
    if (++tried == 2) coverage_.Count("claim: second of a zap");
    if (Place(id, cursor)) {
      coverage_.Count("claim: placed");
    } else {
      coverage_.Count("claim: failed, waits on");
      waiting.push_back(id);
    }
  }
  claims_ = waiting;
}

void Model::ReadUnmaps(const std::vector<Unmap>& unmaps, size_t stuck_pins, Cursor& cursor) {
  struct Item {
    Unmap unmap;
    unsigned attempts = 0;
    std::optional<uint64_t> ticket;
    bool settled = false;
    bool given_up = false;
    uint64_t done = 0;
  };
  std::vector<Item> items;
  items.reserve(unmaps.size());
  for (const Unmap& unmap : unmaps) items.push_back({unmap, 0, {}, false, false, 0});
  size_t given_up = stuck_pins;
  size_t unsafe = 0;
  bool awaited = false;
  std::optional<DmaDomain::Deadline> deadline;
  std::optional<Clock::time_point> started;
  const auto busy = [](const Item& item) { return !item.settled || item.ticket; };
  for (;;) {
    const Event* next = cursor.Peek();
    if (next != nullptr && next->kind == Kind::kUnsafe && unsafe < given_up) {
      cursor.Take("on_unsafe");
      ++unsafe;
      continue;
    }
    if (std::ranges::none_of(items, busy)) break;
    const Event& event = cursor.Take("an unmap (G2: all DMA before any slot)");
    const auto found = std::ranges::find_if(items, [&](const Item& item) {
      if (item.unmap.domain->number() != event.domain || item.unmap.range != event.range)
        return false;
      return event.kind == Kind::kStartUnmap ? !item.settled && !item.ticket
                                             : item.ticket && *item.ticket == event.id;
    });
    if ((event.kind != Kind::kStartUnmap && event.kind != Kind::kAwaitUnmap) ||
        found == items.end()) {
      Differ("not an unmap that is due (G2): {}", event.ToString());
    }
    Item& item = *found;
    if (event.kind == Kind::kStartUnmap) {
      if (++item.attempts == 1 && awaited) Differ("not sent together: {}", event.ToString());
      item.ticket = event.id;
      if (!started) started = event.time;
      continue;
    }
    awaited = true;
    item.ticket.reset();
    if (deadline.value_or(event.deadline) != event.deadline) Differ("not under one deadline");
    deadline = event.deadline;
    if (event.deadline > *started + zap_deadline_) Differ("the deadline moved after the start");
    Domain& domain = *FindDomain(event.domain);
    if (item.settled) continue;  // Its domain has ended.
    item.done += event.bytes;
    switch (event.outcome) {
      case Outcome::kOk:
        if (item.done != item.unmap.range.size) Differ("the fake cannot count");
        item.settled = true;
        if (item.attempts > 1) coverage_.Count("unmap: done at another try");
        break;
      case Outcome::kGone:
      case Outcome::kLost:
      case Outcome::kHung:
        coverage_.Count("unmap: domain ended");
        if (ReadState(domain, cursor)) Differ("an unmap ended a domain that serves");
        for (Item& other : items) {
          if (other.unmap.domain != item.unmap.domain) continue;
          if (other.ticket) coverage_.Count("unmap: domain ended with unmaps under way");
          other.settled = true;
          // A failure of one that ended harms nobody, or is in the matrix.
          if (std::exchange(other.given_up, false)) --given_up;
        }
        break;
      case Outcome::kShort:
      case Outcome::kFailed:
        if (item.attempts < tries_) break;
        coverage_.Count(event.outcome == Outcome::kShort ? "unmap: short, given up"
                                                         : "unmap: failed, given up");
        stuck_[event.domain].insert(item.unmap.range.start);
        item.settled = item.given_up = true;
        ++given_up;
        break;
    }
    if (item.settled && !item.given_up && !domain.ended)
      domain.mapped.erase(item.unmap.range.start);
  }
  // A mapping that could not be taken away stands until nobody tries any more: if its domain is lost
  // meanwhile, it is among what that keeps.
  for (const Item& item : items) {
    if (item.given_up) FindDomain(item.unmap.domain->number())->mapped.erase(item.unmap.range.start);
  }
  if (given_up != 0 && unsafe == 0)
    Differ("an unmap failed for good, and on_unsafe was not called (G5)");
}

void Model::ReadRemovals(std::set<uint32_t> slots, std::vector<IoEvent> events, Cursor& cursor) {
  std::map<uint32_t, unsigned> slot_tries;
  std::vector<unsigned> event_tries(events.size());
  size_t given_up = 0;
  size_t unsafe = 0;
  for (;;) {
    const Event* next = cursor.Peek();
    if (next != nullptr && next->kind == Kind::kUnsafe && unsafe < given_up) {
      cursor.Take("on_unsafe");
      ++unsafe;
      continue;
    }
    if (slots.empty() && events.empty()) break;
    const Event& event = cursor.Take("the removal of a slot or ioeventfd");
    const bool ok = event.outcome == Outcome::kOk;
    if (event.kind == Kind::kSlotRemove && slots.contains(static_cast<uint32_t>(event.id))) {
      const auto number = static_cast<uint32_t>(event.id);
      const unsigned tries = ++slot_tries[number];
      if (ok) slots_.erase(number);
      if (ok && tries > 1) coverage_.Count("slot: removed at another try");
      if (!ok && tries < tries_) continue;
      slots.erase(number);
      if (ok) continue;
      coverage_.Count("slot: removal given up");
      ++given_up;
      continue;
    }
    const auto same = [&](const IoEvent& other) { return SameEvent(other, event.io); };
    const auto found = std::ranges::find_if(events, same);
    if (event.kind != Kind::kIoRemove || found == events.end()) {
      Differ("not a slot or ioeventfd that has to go: {}", event.ToString());
    }
    const auto tries = event_tries.begin() + (found - events.begin());
    if (++*tries < tries_ && !ok) continue;
    event_tries.erase(tries);
    events.erase(found);
    if (ok) {
      events_.erase(std::ranges::find_if(events_, same));
    } else {
      coverage_.Count("ioeventfd: removal given up");
      ++given_up;
    }
  }
  if (given_up != 0 && unsafe == 0)
    Differ("a slot stays for good, and on_unsafe was not called (G5)");
}

}  // namespace crossbar::heart
