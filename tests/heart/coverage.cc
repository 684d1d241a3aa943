#include "tests/heart/coverage.h"

#include <fmt/format.h>

namespace crossbar::heart {
namespace {

constexpr std::string_view kClasses[] = {
    "claim: failed, waits on",
    "claim: placed",
    "claim: second of a zap",
    "claim: waits on",
    "demoted",
    "demoted, nested",
    "demotion: slot back",
    "demotion: slot did not come back",
    "demotion: slot stuck",
    "domain gone",
    "domain joined an empty space",
    "domain joined, pieces replayed",
    "domain left",
    "domain lost",
    "empty domain left",
    "ended domain left",
    "ioeventfd: removal given up",
    "kept elsewhere too",
    "left with what it keeps",
    "lookup: GPA hit",
    "lookup: GPA miss",
    "lookup: HVA alias",
    "lookup: HVA hit",
    "lookup: HVA miss",
    "map: became a claim",
    "map: overlap",
    "not pinned",
    "op: add domain",
    "op: assign domain handle",
    "op: assign handle",
    "op: begin demotion",
    "op: domain ends unseen",
    "op: drop handle",
    "op: end demotion",
    "op: end domain",
    "op: lookups",
    "op: map",
    "op: map or claim",
    "op: move",
    "op: nothing",
    "op: pin",
    "op: unpin",
    "op: zap",
    "op: zap while pinned",
    "pinned",
    "place: BAR refused",
    "place: RAM refused",
    "place: domain ended at RAM",
    "place: domain ended at a BAR",
    "place: ioeventfd refused",
    "place: p2p=off",
    "place: slot refused",
    "placed",
    "placed: piece without a host address",
    "placed: trapped only",
    "placed: with ioeventfds",
    "replay: BAR refused",
    "replay: RAM refused",
    "replay: domain ended",
    "rolled back: DMA",
    "rolled back: slots",
    "slot: removal given up",
    "slot: removed at another try",
    "unmap: domain ended",
    "unmap: domain ended with unmaps under way",
    "unmap: done at another try",
    "unmap: failed, given up",
    "unmap: short, given up",
    "zap: claims only",
    "zap: demoted piece",
    "zap: nothing",
    "zap: one",
    "zap: pin stuck",
    "zap: several",
};

}  // namespace

Coverage::Coverage() {
  for (const std::string_view name : kClasses) counts_[name] = 0;
}

std::string Coverage::ToString() const {
  std::string text;
  for (const auto& [name, count] : counts_) text += fmt::format("{:12} {}\n", count, name);
  return text;
}

std::string Coverage::Missing() const {
  std::string text;
  for (const auto& [name, count] : counts_) {
    if (count == 0) text += fmt::format("{}'{}'", text.empty() ? "" : ", ", name);
  }
  return text;
}

}  // namespace crossbar::heart
