// After each operation: what AddressSpace says, and what the fakes were told, against the model.
#include <algorithm>
#include <tuple>

#include "tests/heart/session.h"

namespace crossbar::heart {

using State = P2pMatrix::Cell::State;

namespace {

// What lies `offset` further on; from the words of backing.h.
Backing Further(Backing backing, uint64_t offset) {
  if (backing.host.value() != 0) backing.host = backing.host + offset;
  if (backing.file) backing.file->offset += offset;
  if (backing.dma_buf) backing.dma_buf->offset += offset;
  if (backing.kind == Backing::Kind::kBar) backing.bar_offset += offset;
  if (backing.bar_physical) *backing.bar_physical += offset;
  return backing;
}

}  // namespace

void Session::CompareAll() {
  for (const Event& event : world_.trace) {
    if (event.kind == Event::Kind::kAwaitUnmap &&
        (event.deadline < began_ + zap_deadline_ || event.deadline > event.time + zap_deadline_)) {
      Differ("an unmap is awaited under another deadline");
    }
    if (event.kind == Event::Kind::kMap && (event.deadline < began_ + map_deadline_ ||
                                            event.deadline > event.time + map_deadline_)) {
      Differ("a map has another deadline");
    }
  }
  CompareKvm();
  CompareDomains();
  CompareHandles();
  CompareMatrix();
  for (int i = 0; i < 2; ++i) {
    CompareLookup(generator_.AnyGpa(world_.rng));
    CompareLookup(generator_.AnyHva(world_.rng));
  }
  const uint64_t generation = space_->generation();
  if (generation < generation_)
    Differ("the generation went from {} to {}", generation_, generation);
  if (model_.changed() && generation == generation_)
    Differ("the generation stayed at {}", generation);
  if (world_.trace.empty() && !model_.may_count() && generation != generation_) {
    Differ("the generation grew for nothing");
  }
  generation_ = generation;
}

void Session::CompareKvm() {
  const std::vector<Memslot> slots = kvm_.Slots();
  if (slots.size() != model_.slots().size()) {
    Differ("KVM has {} slots, not {}", slots.size(), model_.slots().size());
  }
  for (const Memslot& slot : slots) {
    const auto found = model_.slots().find(slot.number);
    if (found == model_.slots().end() || found->second.range != slot.range ||
        found->second.host != slot.host || found->second.read_only != slot.read_only) {
      Differ("slot {} at {} is not as it ought to be", slot.number, slot.range);
    }
  }
  // And the slots that must be there are those of the live pieces.
  for (const auto& [start, piece] : model_.live()) {
    if (piece.slot && !model_.slots().contains(*piece.slot))
      Differ("{} has lost its slot", piece.range);
    if (!piece.slot && piece.backing.host.value() != 0 &&
        piece.backing.kind == Backing::Kind::kRam) {
      Differ("RAM {} has no slot", piece.range);
    }
  }
  if (kvm_.events().size() != model_.events().size()) {
    Differ("KVM has {} ioeventfds, not {}", kvm_.events().size(), model_.events().size());
  }
  for (const IoEvent& event : kvm_.events()) {
    const auto same = [&](const IoEvent& other) { return SameEvent(event, other); };
    if (std::ranges::none_of(model_.events(), same))
      Differ("a stray ioeventfd {}", Describe(event));
  }
}

void Session::CompareDomains() {
  for (const Model::Domain& domain : model_.domains()) {
    if (domain.fake == nullptr) continue;
    const FakeDomain& fake = *domain.fake;
    if (fake.tickets() != 0) Differ("{} has unmaps that nobody awaits", fake.name());
    if (fake.ended()) continue;
    std::set<Gpa> expected = model_.StuckIn(fake);
    expected.insert(domain.mapped.begin(), domain.mapped.end());
    std::set<Gpa> actual;
    for (const auto& [start, mapped] : fake.mapped()) actual.insert(start);
    if (actual != expected) {
      Differ("{} has {} mappings, not {}", fake.name(), actual.size(), expected.size());
    }
    for (const Gpa start : domain.mapped) {
      const auto live = model_.live().find(start);
      const FakeDomain::Mapped& mapped = fake.mapped().at(start);
      if (live == model_.live().end() || live->second.range != mapped.range ||
          !SameBacking(live->second.backing, mapped.backing)) {
        Differ("{} has {} mapped, which is not there", fake.name(), mapped.range);
      }
    }
  }
  for (const Member& member : left_) {
    if (member.fake->tickets() != 0) Differ("{} left with unmaps under way", member.fake->name());
    if (member.fake->ended()) continue;
    const std::set<Gpa> stuck = model_.StuckIn(*member.fake);
    for (const auto& [start, mapped] : member.fake->mapped()) {
      if (!stuck.contains(start)) Differ("{} has left with {}", member.fake->name(), mapped.range);
    }
  }
  if (left_.size() > 16) left_.erase(left_.begin(), left_.begin() + 8);
}

void Session::CompareHandles() {
  for (const Holder& holder : holders_) {
    if (holder.handle.held() != (holder.id != 0)) Differ("handle of {}: held is wrong", holder.id);
    if (holder.handle.live() != model_.IsLive(holder.id)) {
      Differ("handle of {} is {}live", holder.id, holder.handle.live() ? "" : "not ");
    }
  }
}

void Session::CompareMatrix() {
  const P2pMatrix matrix = space_->Peers();
  if (matrix.generation != space_->generation()) Differ("the matrix is of another generation");
  size_t next = 0;
  for (Model::Domain& domain : model_.domains()) {
    std::vector<ExpectedCell> expected;
    for (auto& [start, cell] : domain.bars) {
      const Model::Live& piece = model_.live().at(start);
      expected.push_back({piece.range, piece.backing.owner->bar_owner_name(), piece.backing.bar,
                          piece.backing.bar_offset, &cell});
    }
    for (Model::Kept& kept : domain.kept) {
      expected.push_back({kept.range, kept.target, kept.bar, kept.bar_offset, &kept.cell});
    }
    std::ranges::sort(expected, {}, [](const ExpectedCell& cell) {
      return std::tuple(cell.range.start, cell.range.size, cell.cell->state, cell.target, cell.bar,
                        cell.bar_offset);
    });
    for (const ExpectedCell& cell : expected) {
      if (next == matrix.cells.size()) Differ("no cell for {} at {}", domain.name, cell.range);
      CompareCell(matrix.cells[next++], domain.name, cell);
    }
    if (domain.fake == nullptr || domain.ended) continue;
    for (const auto& [start, piece] : model_.live()) {
      if (piece.backing.kind == Backing::Kind::kBar && !domain.bars.contains(start))
        Differ("the model has no cell for {} at {}", domain.name, start);
    }
  }
  if (next != matrix.cells.size()) {
    Differ("a cell too much: {} at {}", matrix.cells[next].initiator, matrix.cells[next].range);
  }
}

void Session::CompareCell(const P2pMatrix::Cell& actual, const std::string& initiator,
                          const ExpectedCell& expected) {
  Model::Cell& cell = *expected.cell;
  if (actual.initiator != initiator || actual.range != expected.range ||
      actual.state != cell.state) {
    Differ("cell {} at {} {}, not {} at {} {}", actual.initiator, actual.range,
           P2pStateName(actual.state), initiator, expected.range, P2pStateName(cell.state));
  }
  if (actual.target != expected.target || actual.bar != expected.bar ||
      actual.bar_offset != expected.bar_offset) {
    Differ("cell {} at {}: wrong BAR", initiator, actual.range);
  }
  const bool said = cell.state == State::kRefused
                        ? actual.detail.contains(cell.text) && !actual.detail.empty()
                        : actual.detail == cell.text;
  if (!said) {
    Differ("cell {} at {}: detail '{}', not '{}'", initiator, actual.range, actual.detail,
           cell.text);
  }
  if (!cell.since) {
    if (actual.since > Model::Clock::now()) Differ("a cell from the future");
    if (actual.since < began_) Differ("a new cell is old");
    cell.since = actual.since;
  }
  if (*cell.since != actual.since) {
    Differ("cell {} at {}: since has changed", initiator, actual.range);
  }
}

void Session::ComparePlace(const char* what, const std::optional<PieceTable::Place>& place,
                           const Model::Live* piece, uint64_t offset) {
  if (place.has_value() != (piece != nullptr)) {
    Differ("{}: {}", what,
           place ? fmt::format("finds {}", place->range)
                 : fmt::format("does not find {}", piece->range));
  }
  if (!place) return;
  if (place->range != piece->range) Differ("{}: {} and not {}", what, place->range, piece->range);
  Backing backing = place->backing;
  // Says nothing for RAM.
  if (backing.kind == Backing::Kind::kRam) backing.bar_offset = piece->backing.bar_offset;
  if (!SameBacking(backing, Further(piece->backing, offset))) {
    Differ("{}: {} at {:#x}: the backing is another", what, place->range, offset);
  }
}

void Session::CompareLookup(Gpa address) {
  const Model::Live* piece = model_.Find(address);
  const auto place = space_->Find(address);
  coverage_.Count(piece != nullptr ? "lookup: GPA hit" : "lookup: GPA miss");
  ComparePlace("lookup by GPA", place, piece, piece == nullptr ? 0 : address - piece->range.start);
}

void Session::CompareLookup(Hva address) {
  const auto place = space_->Find(address);
  size_t holds = 0;
  bool named = false;
  for (const auto& [start, piece] : model_.live()) {
    const Hva host = piece.backing.host;
    if (host.value() == 0 || address < host || address - host >= piece.range.size) continue;
    ++holds;
    if (place && place->range == piece.range) {
      named = true;
      ComparePlace("lookup by HVA", place, &piece, address - host);
    }
  }
  coverage_.Count(holds == 0   ? "lookup: HVA miss"
                  : holds == 1 ? "lookup: HVA hit"
                               : "lookup: HVA alias");
  if (place && !named) Differ("HVA {:#x} is found at {}", address.value(), place->range);
  if (!place && holds != 0) Differ("HVA {:#x} is not found", address.value());
}

void Session::CheckTimes(const AddressSpace::Zapped& zapped, Model::Clock::time_point before) {
  if (world_.trace.empty()) return;
  if (zapped.dma_out < before || zapped.slots_out < zapped.dma_out ||
      zapped.slots_out > Model::Clock::now()) {
    Differ("the times of a zap are out of order");
  }
  for (const Event& event : world_.trace) {
    if (event.kind == Event::Kind::kSlotAdd || event.kind == Event::Kind::kIoAdd ||
        event.kind == Event::Kind::kMap) {
      break;  // Claims.
    }
    if (event.kind == Event::Kind::kAwaitUnmap && event.time > zapped.dma_out) {
      Differ("an unmap ended after 'DMA out'");
    }
    if (event.kind == Event::Kind::kSlotRemove &&
        (event.time < zapped.dma_out || event.time > zapped.slots_out)) {
      Differ("a slot went outside its stage");
    }
  }
}

}  // namespace crossbar::heart
