// AddressSpace's domains, the matrix and demotion: the changes that are no map and no zap.
#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "memory/address_space.h"

namespace crossbar {
Result<AddressSpace::DomainHandle> AddressSpace::AddDomain(DmaDomain& domain) {
  const Change change(*this);
  const DomainId id = next_id_++;
  domains_[id].domain = &domain;
  peers_.AddDomain(id, domain.name());
  const DmaDomain::Deadline deadline = std::chrono::steady_clock::now() + options_.map_deadline;
  for (const Piece* const piece : LivePieces()) {
    Result<> mapped = MapPiece(id, *piece, deadline);
    if (mapped) continue;
    Remove(id);
    return std::unexpected(std::move(mapped).error());
  }
  Changed();
  return DomainHandle(this, id);
}

std::vector<const AddressSpace::Piece*> AddressSpace::LivePieces() const {
  std::vector<const Piece*> pieces;
  for (const auto& [id, record] : records_) {
    if (!record.live->load(std::memory_order_relaxed)) continue;
    for (const Piece& piece : record.placement.pieces) pieces.push_back(&piece);
  }
  std::ranges::sort(pieces, {}, [](const Piece* piece) { return piece->range.start; });
  return pieces;
}

// Takes every piece out of the domain, and the domain out of the books.
void AddressSpace::Remove(DomainId id) {
  std::vector<Unmap> unmaps;
  for (const GuestRange& range : peers_.Mapped(id)) unmaps.push_back({id, range});
  FinishUnmaps(StartUnmaps(std::move(unmaps)),
               std::chrono::steady_clock::now() + options_.zap_deadline);
  peers_.RemoveDomain(id);
  domains_.erase(id);
  Changed();
}

void AddressSpace::Withdraw(DomainId id) {
  const Change change(*this);
  Remove(id);
}

void AddressSpace::End(DomainId id, DmaDomain::State state) {
  Domain& domain = domains_.at(id);
  CHECK(std::exchange(domain.serves, false) && state != DmaDomain::State::kServing, "{}",
        domain.domain->name());
  if (state == DmaDomain::State::kGone) {
    peers_.Forget(id);
  } else {
    Tell(fmt::format("{} is lost and not ours to stop: it may still reach all that it had mapped",
                     domain.domain->name()));
    peers_.Keep(id);
  }
  Changed();
}

P2pMatrix AddressSpace::Peers() const {
  // First the number, then the cells: what changes between the two makes the number old.
  return peers_.Snapshot(generation());
}

AddressSpace::Demotion AddressSpace::DemoteBars() {
  const Change change(*this);
  ++demotions_;
  size_t demoted = 0;
  for (auto& [start, slot] : piece_slots_) {
    if (slot.backing.kind != Backing::Kind::kBar) continue;
    RemoveSlot(slot);
    ++demoted;
  }
  Changed();
  return Demotion(this, demoted);
}

void AddressSpace::RestoreBars() {
  const Change change(*this);
  CHECK(demotions_ > 0);
  if (--demotions_ != 0) return;
  for (auto& [start, slot] : piece_slots_) {
    if (slot.number) continue;
    const Result<> added = TryAgain([&]() -> Result<> {
      slot.number = TRY(slots_.Add(slot.range, slot.backing.host, !slot.backing.writable));
      return {};
    });
    if (slot.trapped == !added) continue;
    slot.trapped = !added;
    if (added) {
      --trapped_pieces_;
      continue;
    }
    ++trapped_pieces_;
    Tell(trap_limit_, fmt::format("the guest's accesses to {} trap from now on: {}", slot.range,
                                  added.error().message()));
  }
  Changed();
}

AddressSpace::ClaimHold::ClaimHold(AddressSpace& space) : space_(&space) { space.HoldClaims(); }

AddressSpace::ClaimHold::~ClaimHold() {
  if (space_ != nullptr) space_->ReleaseClaims();
}

AddressSpace::Demotion::~Demotion() {
  if (space_ != nullptr) space_->RestoreBars();
}

AddressSpace::DomainHandle::DomainHandle(DomainHandle&& other) noexcept
    : space_(std::exchange(other.space_, nullptr)), id_(other.id_) {}

AddressSpace::DomainHandle& AddressSpace::DomainHandle::operator=(DomainHandle&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  space_ = std::exchange(other.space_, nullptr);
  id_ = other.id_;
  return *this;
}

void AddressSpace::DomainHandle::Reset() {
  if (space_ != nullptr) std::exchange(space_, nullptr)->Withdraw(id_);
}

}  // namespace crossbar
