// P2pMatrix: which initiator can DMA into which BAR, how, since when, or why not.
//
// A value: a snapshot that AddressSpace::Peers makes. One cell for each DMA domain and each placed
// BAR piece; and one for each BAR piece, and for all of guest RAM, that a foreign server that is
// lost may still reach, whether or not the piece or the domain has left.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "memory/address.h"

namespace crossbar {

struct P2pMatrix {
  struct Cell {
    enum class State : uint8_t {
      kMapped,
      kRefused,    // `detail` is the reason
      kUnrevoked,  // was mapped, and a foreign server may still reach it: `detail` is why
      kUnguarded,  // mapped or refused, as `detail` says; it is reached past the IOMMU in any case
    };
    std::string initiator;  // the domain's name
    std::string target;     // the BAR owner's name, or "guest RAM"
    uint8_t bar = 0;
    uint64_t bar_offset = 0;
    GuestRange range;
    State state = State::kMapped;
    std::string detail;  // kMapped: how
    std::chrono::steady_clock::time_point since;
  };

  uint64_t generation = 0;  // of the AddressSpace when this was made
  std::chrono::steady_clock::time_point made;
  std::vector<Cell> cells;  // by initiator in order of joining, then by guest address

  // A table for people, one line a cell. `for`: how long it has been so, in seconds.
  std::string ToString() const;
};

const char* P2pStateName(P2pMatrix::Cell::State state);

}  // namespace crossbar
