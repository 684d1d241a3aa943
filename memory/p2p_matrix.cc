#include "memory/p2p_matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace crossbar {

const char* P2pStateName(P2pMatrix::Cell::State state) {
  switch (state) {
    case P2pMatrix::Cell::State::kMapped: return "mapped";
    case P2pMatrix::Cell::State::kRefused: return "refused";
    case P2pMatrix::Cell::State::kUnrevoked: return "unrevoked";
    case P2pMatrix::Cell::State::kUnguarded: return "unguarded";
  }
  return "unknown";
}

std::string P2pMatrix::ToString() const {
  size_t initiators = sizeof("initiator") - 1;
  size_t targets = sizeof("target") - 1;
  for (const Cell& cell : cells) {
    initiators = std::max(initiators, cell.initiator.size());
    targets = std::max(targets, cell.target.size());
  }
  std::string text = fmt::format("{:{}}  {:{}}  bar  {:35}  {:>10}  state\n", "initiator",
                                 initiators, "target", targets, "guest range", "for");
  for (const Cell& cell : cells) {
    fmt::format_to(std::back_inserter(text), "{:{}}  {:{}}  {:3}  {:35}  {:10.3f}  {}{}{}\n",
                   cell.initiator, initiators, cell.target, targets, cell.bar,
                   fmt::format("{}", cell.range),
                   std::chrono::duration<double>(made - cell.since).count(),
                   P2pStateName(cell.state), cell.detail.empty() ? "" : ": ", cell.detail);
  }
  return text;
}

}  // namespace crossbar
