#include "tests/heart/session.h"

#include <algorithm>

namespace crossbar::heart {

using Kind = Event::Kind;

Session::Session(uint64_t seed, Coverage& coverage)
    : seed_(seed),
      coverage_(coverage),
      world_(seed),
      rng_(Mix(seed, 0)),
      generator_(world_, rng_),
      length_(rng_.OneIn(8) ? rng_.Between(300, 1000) : rng_.Between(20, 200)),
      patient_(!rng_.OneIn(8)),
      zap_deadline_(patient_ ? 20'000 : 0),
      kvm_(world_),
      model_(static_cast<unsigned>(rng_.Between(1, 4)), zap_deadline_, coverage) {
  AddressSpace::Options options;
  options.tries = model_.tries();
  options.zap_deadline = zap_deadline_;
  options.map_deadline = map_deadline_;
  options.on_unsafe = [this](const Error& error) {
    Event event(Kind::kUnsafe);
    event.text = error.ToString();
    world_.Record(std::move(event));
  };
  world_.probe = [this](const Event& event) { WatchClosing(event); };
  space_ = std::make_unique<AddressSpace>(kvm_, options);
  holders_.resize(rng_.Between(1, 24));
}

Session::~Session() = default;

void Session::Step(uint64_t n) {
  operation_ = n;
  Rng rng(Mix(seed_, n + 1));
  world_.rng = Rng(Mix(~seed_, n + 1));
  const uint64_t draw = rng.Below(100);
  faults_ = generator_.NewFaults(rng, draw < 32 || (draw >= 64 && draw < 69));
  if (draw < 32) return DoMap(rng);
  if (draw < 46) return DoZap(rng);
  if (draw < 48) return DoZapWhilePinned(rng);
  if (draw < 56) return DoMove(rng);
  if (draw < 60) return DoAssign(rng);
  if (draw < 64) return DoDrop(rng);
  if (draw < 69) return DoAddDomain(rng);
  if (draw < 72) return DoEndDomain(rng);
  if (draw < 74) return DoEndUnseen(rng);
  if (draw < 75) return DoAssignDomain(rng);
  if (draw < 78) return DoBeginDemotion(rng);
  if (draw < 81) return DoEndDemotion(rng);
  if (draw < 85) return DoPin(rng);
  if (draw < 89) return DoUnpin(rng);
  if (draw < 96) return DoLookups(rng);
  return DoNothing(rng);
}

void Session::Begin(std::string what) {
  Note(std::move(what));
  for (const Fault& fault : faults_) {
    history_.back() +=
        fmt::format(" [call kind {} #{} ends as {} x{}]", static_cast<int>(fault.kind), fault.nth,
                    static_cast<int>(fault.outcome), fault.times);
  }
  world_.StartOperation(std::exchange(faults_, {}));
  model_.StartOperation();
  closing_.clear();
  began_ = Model::Clock::now();
}

void Session::End() {
  closing_.clear();
  if (!world_.violations.empty()) Differ("{}", world_.violations.front());
  CompareAll();
}

void Session::Note(std::string what) {
  history_.push_back(fmt::format("#{} {}", operation_, what));
  if (history_.size() > 20) history_.pop_front();
}

void Session::ExpectNoCalls() {
  Cursor cursor(world_.trace);
  cursor.End();
}

std::string Session::TraceText() const {
  std::string text;
  for (size_t i = 0; i < world_.trace.size() && i < 200; ++i) {
    text += fmt::format("  {:3} {}\n", i, world_.trace[i].ToString());
  }
  return text;
}

Session::Holder* Session::EmptyHolder() {
  const auto found =
      std::ranges::find_if(holders_, [](const Holder& holder) { return holder.id == 0; });
  return found == holders_.end() ? nullptr : &*found;
}

void Session::ForgetPinsOf(uint64_t id) {
  if (!patient_) return;
  std::erase_if(pins_, [&](HeldPin& held) {
    const bool drop = std::ranges::any_of(model_.live(), [&](const auto& entry) {
      return entry.second.record == id && entry.second.piece == held.piece;
    });
    if (drop) model_.Unpin(held.piece);
    return drop;
  });
}

// Called at every call of a fake. From the start of a zap on, what is zapped is found by nobody,
// takes no pin and is not live; and no lookup waits for the zap.
void Session::WatchClosing(const Event& event) {
  if (event.kind == Kind::kSlotRemove && drained_ != nullptr && !drained_->load()) {
    world_.Violation("a slot goes while a forwarded DMA is under way (G2)");
  }
  if (world_.rng.OneIn(64)) (void)space_->Peers();
  for (const Event& earlier : world_.trace) {
    // Claims that are placed may stand there by now.
    if (earlier.kind == Kind::kSlotAdd || earlier.kind == Kind::kIoAdd ||
        earlier.kind == Kind::kMap) {
      return;
    }
  }
  for (const Holder* holder : closing_) {
    if (holder->handle.live()) world_.Violation("a handle is live in its zap");
    const auto record = model_.records().find(holder->id);
    if (record == model_.records().end() || !record->second.live) continue;
    const auto& pieces = record->second.placement.pieces;
    if (pieces.empty()) continue;
    const GuestRange range = pieces[world_.rng.Below(pieces.size())].range;
    if (space_->Find(range.start)) world_.Violation(fmt::format("{} is found in its zap", range));
    if (space_->TryPin(range)) world_.Violation(fmt::format("{} is pinned in its zap", range));
  }
}

void Session::Finish() {
  ++operation_;
  faults_.clear();
  Rng rng(Mix(seed_, ~0ull));
  world_.rng = Rng(Mix(seed_, ~1ull));
  // Domains before pieces, after, or some before.
  while (!members_.empty() && !rng.OneIn(4)) DoEndDomain(rng);
  while (!demotions_.empty() && !rng.OneIn(4)) DoEndDemotion(rng);
  while (std::ranges::any_of(holders_, [](const Holder& holder) { return holder.id != 0; })) {
    std::vector<Holder*> some;
    for (Holder& holder : holders_) {
      if (rng.OneIn(2)) some.push_back(&holder);
    }
    ZapTogether(std::move(some), "zap at the end");
  }
  while (!demotions_.empty()) DoEndDemotion(rng);
  while (!members_.empty()) DoEndDomain(rng);
  while (!pins_.empty()) DoUnpin(rng);
  if (!model_.live().empty() || !model_.records().empty()) Differ("the model does not end empty");
  Begin("end of the address space");
  size_t kept = 0;
  for (const Model::Domain& domain : model_.domains()) kept += domain.kept.size();
  if (space_->Peers().cells.size() != kept) Differ("not only what is unrevoked is left at the end");
  holders_.clear();
  left_.clear();
  space_.reset();
  ExpectNoCalls();
}

}  // namespace crossbar::heart
