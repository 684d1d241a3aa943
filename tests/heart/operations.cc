// The operations of a session.
#include <algorithm>
#include <thread>

#include "tests/heart/session.h"

namespace crossbar::heart {
namespace {

std::string Describe(const AddressSpace::Placement& placement) {
  std::string text;
  for (const auto& [range, backing] : placement.pieces) {
    text += fmt::format(" {{{} {}}}", range, heart::Describe(backing));
  }
  if (!placement.whole.empty()) text += fmt::format(" {{in {}}}", placement.whole);
  for (const IoEvent& event : placement.events)
    text += fmt::format(" {{io {}}}", heart::Describe(event));
  return text;
}

}  // namespace

void Session::MapInto(Holder& holder, const AddressSpace::Placement& placement, bool may_claim) {
  Begin(
      fmt::format("{} {} ->{}", may_claim ? "map or claim" : "map", next_id_, Describe(placement)));
  coverage_.Count(may_claim ? "op: map or claim" : "op: map");
  auto result = may_claim ? space_->MapOrClaim(placement) : space_->Map(placement);
  const uint64_t id = next_id_++;
  Cursor cursor(world_.trace);
  const Model::Placed placed = model_.Map(id, placement, may_claim, cursor);
  const bool held = placed == Model::Placed::kYes || placed == Model::Placed::kClaim;
  if (result.has_value() != held) {
    Differ("the map {}", held ? "failed: " + result.error().ToString() : "did not fail");
  }
  if (!result) {
    if (placed == Model::Placed::kOverlap && result.error().code() != EEXIST) {
      Differ("an overlap is error {}: {}", result.error().code(), result.error().ToString());
    }
    return End();
  }
  if (result->live() != (placed == Model::Placed::kYes))
    Differ("a new mapping is live: {}", result->live());
  holder.handle = std::move(*result);
  holder.id = id;
  End();
}

void Session::DoMap(Rng& rng) {
  Holder* holder = EmptyHolder();
  if (holder == nullptr) return DoZap(rng);
  const bool may_claim = rng.OneIn(2);
  MapInto(*holder, generator_.NewPlacement(rng), may_claim);
}

void Session::ZapTogether(std::vector<Holder*> holders, const char* name) {
  std::vector<AddressSpace::Mapping*> handles;
  std::set<uint64_t> ids;
  std::string what = name;
  for (Holder* holder : holders) {
    handles.push_back(&holder->handle);
    ForgetPinsOf(holder->id);
    if (holder->id != 0) ids.insert(holder->id);
    what += fmt::format(" {}", holder->id);
  }
  Begin(std::move(what));
  coverage_.Count("op: zap");
  closing_.assign(holders.begin(), holders.end());
  size_t live_pieces = 0;
  for (const uint64_t id : ids)
    if (model_.IsLive(id)) live_pieces += model_.records().at(id).placement.pieces.size();
  const auto zapped = space_->Zap(handles);
  Cursor cursor(world_.trace);
  model_.Zap(ids, cursor);
  if (zapped.pieces != live_pieces) Differ("{} pieces zapped, of {}", zapped.pieces, live_pieces);
  CheckTimes(zapped, began_);
  for (Holder* holder : holders) {
    if (holder->handle.held()) Differ("a zapped handle is held");
    holder->id = 0;
  }
  End();
}

void Session::DoZap(Rng& rng) {
  std::vector<Holder*> holders;
  const uint64_t count = rng.OneIn(3) ? rng.Between(2, 6) : 1;
  holders.reserve(count);
  for (uint64_t i = 0; i < count; ++i) holders.push_back(&AnyHolder(rng));
  ZapTogether(std::move(holders), "zap");
}

// Somebody forwards a DMA while the zap comes: the zap waits for it, and not in vain.
void Session::DoZapWhilePinned(Rng& rng) {
  Holder& holder = AnyHolder(rng);
  if (!patient_ || !model_.IsLive(holder.id)) return DoLookups(rng);
  const auto& pieces = model_.records().at(holder.id).placement.pieces;
  if (pieces.empty()) return DoLookups(rng);
  ForgetPinsOf(holder.id);
  const GuestRange range = pieces[rng.Below(pieces.size())].range;
  auto pin = space_->TryPin(range);
  if (!pin) Differ("no pin on {}", range);
  coverage_.Count("op: zap while pinned");
  std::atomic<bool> drained = false;
  drained_ = &drained;
  {
    const std::jthread forwarder([&, held = std::move(pin)]() mutable {
      const auto give_up = Model::Clock::now() + std::chrono::seconds(10);
      while (space_->Find(range.start) && Model::Clock::now() < give_up) std::this_thread::yield();
      drained = true;
      held.reset();
    });
    ZapTogether({&holder}, "zap while pinned");
    if (!drained) Differ("the zap did not wait for a pin");
  }
  drained_ = nullptr;
}

void Session::DoMove(Rng& rng) {
  Holder& holder = AnyHolder(rng);
  if (holder.id == 0) return DoMap(rng);
  coverage_.Count("op: move");
  const auto placement = generator_.Moved(model_.records().at(holder.id).placement, rng);
  const bool may_claim = !rng.OneIn(4);
  std::vector<Fault> later;
  if (rng.OneIn(2)) later.swap(faults_);
  ZapTogether({&holder}, "move: zap");
  faults_ = std::move(later);
  MapInto(holder, placement, may_claim);
}

void Session::DoAssign(Rng& rng) {
  Holder& from = AnyHolder(rng);
  Holder& to = AnyHolder(rng);
  coverage_.Count("op: assign handle");
  if (&from != &to) ForgetPinsOf(to.id);
  Begin(fmt::format("handle of {} = handle of {}", to.id, from.id));
  if (&from == &to) {
    // Through a reference, so that the compiler does not see it.
    AddressSpace::Mapping& same = to.handle;
    to.handle = std::move(same);
    ExpectNoCalls();
    return End();
  }
  const uint64_t replaced = std::exchange(to.id, std::exchange(from.id, 0));
  to.handle = std::move(from.handle);
  Cursor cursor(world_.trace);
  if (replaced != 0) model_.Zap({replaced}, cursor);
  cursor.End();
  End();
}

// The end of a handle.
void Session::DoDrop(Rng& rng) {
  Holder& holder = AnyHolder(rng);
  coverage_.Count("op: drop handle");
  ForgetPinsOf(holder.id);
  Begin(fmt::format("drop {}", holder.id));
  {
    const AddressSpace::Mapping dropped(std::move(holder.handle));
    if (holder.handle.held() || holder.handle.live())
      Differ("a handle that was moved from is held");
  }
  Cursor cursor(world_.trace);
  if (holder.id != 0) model_.Zap({holder.id}, cursor);
  cursor.End();
  holder.id = 0;
  End();
}

void Session::DoAddDomain(Rng& rng) {
  if (members_.size() == 8) return DoEndDomain(rng);
  Member member;
  member.fake = std::make_unique<FakeDomain>(world_, next_domain_++, generator_.NewRules(rng));
  if (rng.OneIn(20)) member.fake->End();
  coverage_.Count("op: add domain");
  Begin(fmt::format("add domain {}{}{}", member.fake->number(),
                    member.fake->foreign() ? ", foreign" : "",
                    member.fake->ended() ? ", ended" : ""));
  auto result = space_->AddDomain(*member.fake);
  Cursor cursor(world_.trace);
  const bool added = model_.AddDomain(*member.fake, cursor);
  cursor.End();
  if (result.has_value() != added) {
    Differ("AddDomain {}", result ? "did not fail" : "failed: " + result.error().ToString());
  }
  if (result) {
    member.handle = std::move(*result);
    members_.push_back(std::move(member));
  } else {
    member.fake->Forbid();
    left_.push_back(std::move(member));
  }
  End();
}

void Session::DoEndDomain(Rng& rng) {
  if (members_.empty()) return DoLookups(rng);
  const size_t index = rng.Below(members_.size());
  Member& member = members_[index];
  coverage_.Count("op: end domain");
  Begin(fmt::format("end domain {}", member.fake->number()));
  if (rng.OneIn(2)) {
    member.handle.Reset();
  } else {
    const AddressSpace::DomainHandle dropped(std::move(member.handle));
  }
  Cursor cursor(world_.trace);
  model_.EndDomain(*member.fake, cursor);
  left_.push_back(std::move(member));
  members_.erase(members_.begin() + static_cast<ptrdiff_t>(index));
  End();
}

void Session::DoEndUnseen(Rng& rng) {
  if (members_.empty()) return DoLookups(rng);
  Member& member = members_[rng.Below(members_.size())];
  coverage_.Count("op: domain ends unseen");
  Begin(fmt::format("domain {} ends unseen", member.fake->number()));
  member.fake->End();
  End();
}

void Session::DoAssignDomain(Rng& rng) {
  if (members_.size() < 2) return DoLookups(rng);
  const size_t index = rng.Below(members_.size());
  const size_t other = (index + 1) % members_.size();
  Member& to = members_[index];
  Member& from = members_[other];
  coverage_.Count("op: assign domain handle");
  Begin(fmt::format("handle of domain {} = handle of domain {}", to.fake->number(),
                    from.fake->number()));
  to.handle = std::move(from.handle);
  Cursor cursor(world_.trace);
  model_.EndDomain(*to.fake, cursor);
  std::swap(to.fake, from.fake);
  left_.push_back(std::move(from));
  members_.erase(members_.begin() + static_cast<ptrdiff_t>(other));
  End();
}

void Session::DoBeginDemotion(Rng& rng) {
  if (demotions_.size() == 3) return DoEndDemotion(rng);
  coverage_.Count("op: begin demotion");
  Begin("demote BARs");
  auto demotion = std::make_unique<AddressSpace::Demotion>(space_->DemoteBars());
  Cursor cursor(world_.trace);
  const size_t demoted = model_.BeginDemotion(cursor);
  if (demotion->demoted() != demoted)
    Differ("demoted {} pieces, not {}", demotion->demoted(), demoted);
  demotions_.push_back(std::move(demotion));
  End();
}

void Session::DoEndDemotion(Rng& rng) {
  if (demotions_.empty()) return DoLookups(rng);
  const size_t index = rng.Below(demotions_.size());
  coverage_.Count("op: end demotion");
  Begin("end of a demotion");
  demotions_.erase(demotions_.begin() + static_cast<ptrdiff_t>(index));
  Cursor cursor(world_.trace);
  model_.EndDemotion(cursor);
  End();
}

void Session::DoPin(Rng& rng) {
  if (pins_.size() == 8) return DoUnpin(rng);
  const Gpa address = generator_.AnyGpa(rng);
  const Model::Live* piece = model_.Find(address);
  GuestRange range{address, rng.Between(1, 2 * kPageSize)};
  if (piece != nullptr && rng.OneIn(2)) {
    range.size = piece->range.size - (address - piece->range.start);  // To its very end.
  } else if (!GuestRange::Checked(address.value(), range.size)) {
    range.size = 1;
  }
  coverage_.Count("op: pin");
  Begin(fmt::format("pin {}", range));
  auto pin = space_->TryPin(range);
  ExpectNoCalls();
  const bool takes = piece != nullptr && piece->range.Contains(range);
  if (pin.has_value() != takes) Differ("{} pin on {}", pin ? "a" : "no", range);
  coverage_.Count(takes ? "pinned" : "not pinned");
  if (pin) {
    ComparePlace("pin", pin->place(), piece, address - piece->range.start);
    model_.Pin(piece->piece);
    pins_.push_back({std::move(*pin), piece->piece});
  }
  End();
}

void Session::DoUnpin(Rng& rng) {
  if (pins_.empty()) return DoLookups(rng);
  coverage_.Count("op: unpin");
  Begin("unpin");
  const auto held = std::next(pins_.begin(), static_cast<ptrdiff_t>(rng.Below(pins_.size())));
  model_.Unpin(held->piece);
  pins_.erase(held);
  ExpectNoCalls();
  End();
}

void Session::DoLookups(Rng& rng) {
  coverage_.Count("op: lookups");
  Begin("lookups");
  for (int i = 0; i < 16; ++i) {
    CompareLookup(generator_.AnyGpa(rng));
    CompareLookup(generator_.AnyHva(rng));
  }
  ExpectNoCalls();
  End();
}

// G9: what is done already costs no call.
void Session::DoNothing(Rng& rng) {
  coverage_.Count("op: nothing");
  Begin("nothing");
  AddressSpace::Mapping empty;
  AddressSpace::Mapping other;
  AddressSpace::DomainHandle none;
  const std::array<AddressSpace::Mapping*, 2> both = {&empty, &other};
  switch (rng.Below(4)) {
    case 0:
      space_->Zap(both);
      break;
    case 1:
      space_->Zap({});
      break;
    case 2:
      empty = std::move(other);
      break;
    default:
      none.Reset();
      break;
  }
  if (empty.live() || empty.held()) Differ("an empty handle is live or held");
  ExpectNoCalls();
  End();
}

}  // namespace crossbar::heart
