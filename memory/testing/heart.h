// Heart: an AddressSpace over fakes that share one Recorder, and short words for pieces. For tests.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "memory/address_space.h"
#include "memory/testing/recorder.h"
#include "memory/testing/recording_domain.h"
#include "memory/testing/recording_slots.h"

namespace crossbar::testing {

using Mapping = AddressSpace::Mapping;
using Piece = AddressSpace::Piece;
using Placement = AddressSpace::Placement;
using Answer = RecordingDomain::Answer;
using CellState = P2pMatrix::Cell::State;

class FakeOwner : public BarOwner {
 public:
  explicit FakeOwner(std::string name) : name_(std::move(name)) {}
  std::string bar_owner_name() const override { return name_; }
  void OnVanished(Gpa) override { ADD_FAILURE() << "AddressSpace called its piece's owner"; }

 private:
  const std::string name_;
};

// Memory that nobody touches: the fakes only compare addresses.
inline constexpr uint64_t kHost = 0x7f00'0000'0000;

inline Piece Ram(uint64_t start, uint64_t size = kPageSize) {
  Piece piece{{Gpa(start), size}, {}};
  piece.backing.host = Hva(kHost + start);
  piece.backing.file = {{.fd = 100, .offset = start}};
  return piece;
}

inline Piece Bar(uint64_t start, uint64_t size = kPageSize, BarOwner* owner = nullptr,
                 uint8_t bar = 0) {
  Piece piece = Ram(start, size);
  piece.backing.kind = Backing::Kind::kBar;
  piece.backing.owner = owner;
  piece.backing.bar = bar;
  return piece;
}

inline IoEvent EventAt(uint64_t address) { return {Gpa(address), 4, std::nullopt, -1}; }

inline Placement Of(std::vector<Piece> pieces, std::vector<IoEvent> events = {}) {
  return {std::move(pieces), std::move(events)};
}

struct Heart {
  explicit Heart(std::chrono::milliseconds zap_deadline = std::chrono::seconds(20),
                 std::chrono::milliseconds map_deadline = std::chrono::seconds(20))
      : space(slots, {.zap_deadline = zap_deadline,
                      .map_deadline = map_deadline,
                      .on_unsafe = [this](const Error& error) {
                        unsafe.push_back(error.message());
                        recorder.Note("unsafe");
                      }}) {}

  Mapping Map(Placement placement) {
    auto mapping = space.Map(std::move(placement));
    EXPECT_TRUE(mapping) << mapping.error().message();
    return mapping ? *std::move(mapping) : Mapping();
  }
  Mapping Claim(Placement placement) {
    auto mapping = space.MapOrClaim(std::move(placement));
    EXPECT_TRUE(mapping) << mapping.error().message();
    return mapping ? *std::move(mapping) : Mapping();
  }
  AddressSpace::DomainHandle Join(RecordingDomain& domain) {
    auto handle = space.AddDomain(domain);
    EXPECT_TRUE(handle) << handle.error().message();
    return handle ? *std::move(handle) : AddressSpace::DomainHandle();
  }
  void Zap(std::vector<Mapping*> mappings) { space.Zap(mappings); }
  bool Finds(uint64_t address) const { return space.Find(Gpa(address)).has_value(); }

  // The matrix in short: "A 0x1000 mapped mmap".
  Events Cells() const {
    Events cells;
    for (const P2pMatrix::Cell& cell : space.Peers().cells)
      cells.push_back(fmt::format("{} {} {} {}", cell.initiator, cell.range.start,
                                  P2pStateName(cell.state), cell.detail));
    return cells;
  }

  Recorder recorder;
  RecordingSlots slots{recorder};
  RecordingDomain a{recorder, "A"};
  RecordingDomain b{recorder, "B"};
  std::vector<std::string> unsafe;  // what the emergency was told, each time
  AddressSpace space;
};

}  // namespace crossbar::testing
