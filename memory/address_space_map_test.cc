// Map: G1, G3, G4, G6 and G9 of AddressSpace, and its lookups.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "memory/testing/heart.h"

namespace crossbar::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(AddressSpace, G1MapPlacesMemslotsThenDmaInEveryDomain) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  heart.recorder.Hardware("decode on");
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x4000)}, {EventAt(0x2000)}));
  heart.recorder.Hardware("guest continues");
  EXPECT_TRUE(mapping.live());
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"hardware decode on", "slot+ 0x1000", "slot+ 0x4000", "event+ 0x2000",
                    "dma+ A 0x1000", "dma+ A 0x4000", "dma+ B 0x1000", "dma+ B 0x4000",
                    "hardware guest continues"}));
}

TEST(AddressSpace, G1APieceIsFoundBeforeAnyDomainIsToldOfIt) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  bool found = false;
  heart.recorder.on_event = [&](const std::string& event) {
    if (event == "dma+ A 0x1000") found = heart.Finds(0x1000);
  };
  const Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  EXPECT_TRUE(found);
}

TEST(AddressSpace, ReadOnlyMemoryGetsAReadOnlySlotAndMemoryElsewhereGetsNone) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Piece read_only = Bar(0x1000);
  read_only.backing.writable = false;
  Piece elsewhere = Bar(0x2000);
  elsewhere.backing.host = Hva();
  const Mapping mapping = heart.Map(Of({read_only, elsewhere}));
  ASSERT_EQ(heart.slots.Slots().size(), 1u);
  EXPECT_TRUE(heart.slots.Slots()[0].read_only);
  EXPECT_EQ(heart.slots.Slots()[0].range, read_only.range);
  EXPECT_EQ(heart.a.Mapped().size(), 2u);
  EXPECT_TRUE(heart.Finds(0x2000));
}

// --- G3: all or nothing

class G3 : public ::testing::Test {
 protected:
  void ExpectAsBefore() {
    EXPECT_THAT(heart.slots.Slots(), ::testing::SizeIs(1));
    EXPECT_THAT(heart.slots.EventAddresses(), IsEmpty());
    EXPECT_THAT(heart.a.Mapped(), ElementsAre(ram.range));
    EXPECT_THAT(heart.b.Mapped(), ElementsAre(ram.range));
    EXPECT_FALSE(heart.Finds(0x1000));
    EXPECT_FALSE(heart.Finds(0x4000));
    EXPECT_THAT(heart.Cells(), IsEmpty());
    EXPECT_THAT(heart.unsafe, IsEmpty());
    const Mapping again = heart.Map(wanted);
    EXPECT_TRUE(again.live());
  }

  Heart heart;
  const AddressSpace::DomainHandle a = heart.Join(heart.a);
  const AddressSpace::DomainHandle b = heart.Join(heart.b);
  const Piece ram = Ram(0x10000);
  const Mapping before = heart.Map(Of({ram}));
  const Events nothing = heart.recorder.Take();
  const Placement wanted = Of({Bar(0x1000), Ram(0x4000)}, {EventAt(0x2000), EventAt(0x3000)});
};

TEST_F(G3, AMapWhoseSecondSlotFailsLeavesAllAsBefore) {
  heart.recorder.Fail("slot+", 2);
  EXPECT_EQ(heart.space.Map(wanted).error().code(), EIO);
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x1000", "slot+ 0x4000 failed", "slot- 0x1000"}));
  ExpectAsBefore();
}

TEST_F(G3, AMapWhoseSecondEventFailsLeavesAllAsBefore) {
  heart.recorder.Fail("event+", 2);
  EXPECT_EQ(heart.space.Map(wanted).error().code(), EIO);
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"slot+ 0x1000", "slot+ 0x4000", "event+ 0x2000", "event+ 0x3000 failed",
                    "event- 0x2000", "slot- 0x4000", "slot- 0x1000"}));
  ExpectAsBefore();
}

// The rollback is a zap: G2 holds for it too.
TEST_F(G3, AMapWhoseRamADomainRefusesLeavesAllAsBefore) {
  heart.recorder.Fail("dma+", 4);
  const auto mapping = heart.space.Map(wanted);
  ASSERT_FALSE(mapping);
  EXPECT_EQ(mapping.error().message(), "B cannot map guest RAM 0x4000-0x4fff: injected");
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"slot+ 0x1000", "slot+ 0x4000", "event+ 0x2000", "event+ 0x3000",
                    "dma+ A 0x1000", "dma+ A 0x4000", "dma+ B 0x1000", "dma+ B 0x4000 refused",
                    "dma- start A 0x1000", "dma- start A 0x4000", "dma- start B 0x1000",
                    "dma- done A 0x1000", "dma- done A 0x4000", "dma- done B 0x1000",
                    "event- 0x3000", "event- 0x2000", "slot- 0x4000", "slot- 0x1000"}));
  ExpectAsBefore();
}

TEST_F(G3, AnEventThatIsTakenIsRefusedAndLeavesTheFirstInPlace) {
  const Mapping first = heart.Map(Of({}, {EventAt(0x3000)}));
  EXPECT_EQ(heart.space.Map(wanted).error().code(), EEXIST);
  EXPECT_THAT(heart.slots.EventAddresses(), ElementsAre(Gpa(0x3000)));
}

TEST_F(G3, APinOnAPieceWhoseMapFailsDelaysTheRollback) {
  std::thread pinner;
  std::atomic<bool> unpinned = false;
  heart.recorder.on_event = [&](const std::string& event) {
    if (event == "dma+ A 0x1000") {
      pinner = std::thread([&, pin = heart.space.TryPin(Bar(0x1000).range)] {
        EXPECT_TRUE(pin);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        unpinned = true;
      });
    } else if (event == "dma- done A 0x1000") {
      EXPECT_TRUE(unpinned);
    }
  };
  heart.recorder.Fail("dma+", 4);
  EXPECT_FALSE(heart.space.Map(wanted));
  pinner.join();
  heart.recorder.on_event = nullptr;
  ExpectAsBefore();
}

// --- G4: no overlap

TEST(AddressSpace, G4ASecondPieceOnALivePageIsRefusedWithoutACallAndTheFirstStands) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const Mapping first = heart.Map(Of({Bar(0x4000, 0x4000)}));
  heart.recorder.Take();
  for (const GuestRange range : {GuestRange{Gpa(0x4000), 0x4000},  // the same
                                 {Gpa(0x5000), 0x1000},            // within
                                 {Gpa(0x3000), 0x6000},            // around
                                 {Gpa(0x3000), 0x2000},            // over its start
                                 {Gpa(0x7000), 0x2000},            // over its end
                                 {Gpa(0x4000), 0x1000},            // its first page
                                 {Gpa(0x7000), 0x1000}}) {         // its last page
    SCOPED_TRACE(fmt::format("{}", range));
    const auto second = heart.space.Map(Of({Bar(0x20000), Bar(range.start.value(), range.size)}));
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), EEXIST);
    EXPECT_THAT(second.error().message(), HasSubstr("overlaps 0x4000-0x7fff"));
  }
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  EXPECT_FALSE(heart.Finds(0x20000));
  EXPECT_THAT(heart.a.Mapped(), ElementsAre(GuestRange{Gpa(0x4000), 0x4000}));
  const Mapping neighbours = heart.Map(Of({Bar(0x3000), Bar(0x8000)}));
  EXPECT_TRUE(neighbours.live());
}

TEST(AddressSpace, G4HoldsAtBothEndsOfTheAddressSpace) {
  Heart heart;
  const Mapping top = heart.Map(Of({Bar(~0ull - 0x1fff, 0x2000)}));
  const Mapping bottom = heart.Map(Of({Bar(0, 0x2000)}));
  EXPECT_FALSE(heart.space.Map(Of({Bar(~0ull - 0xfff)})));
  EXPECT_FALSE(heart.space.Map(Of({Bar(0x1000)})));
  EXPECT_TRUE(heart.Finds(~0ull));
  EXPECT_TRUE(heart.Finds(0));
  EXPECT_FALSE(heart.Finds(~0ull - 0x2000));
}

// --- G6: RAM or an error, a BAR or a cell

TEST(AddressSpace, G6ABarThatOneDomainRefusesIsOneCellAndTheOthersStand) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  heart.a.refuse = [](GuestRange range, const Backing&) {
    return range.start == Gpa(0x1000) ? "beyond 39 bits" : "";
  };
  heart.b.how = "dma-buf";
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  EXPECT_TRUE(mapping.live());
  EXPECT_EQ(heart.Cells(),
            (Events{"A 0x1000 refused beyond 39 bits", "A 0x2000 mapped mmap",
                    "B 0x1000 mapped dma-buf", "B 0x2000 mapped dma-buf"}));
  EXPECT_THAT(heart.a.Mapped(), ElementsAre(GuestRange{Gpa(0x2000), 0x1000}));
}

TEST(AddressSpace, G6WhatARefusalLeftUnmappedIsNotUnmapped) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  heart.recorder.Fail("dma+");
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  heart.recorder.Take();
  heart.Zap({&mapping});
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot- 0x1000"}));
}

TEST(AddressSpace, G6ABarThatPeersMayNotMapReachesNoDomain) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Piece piece = Bar(0x1000);
  piece.backing.peers_may_map = false;
  const Mapping mapping = heart.Map(Of({piece}));
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x1000"}));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 refused p2p=off"}));
}

TEST(AddressSpace, G6ADomainThatDiesInAMapDoesNotFailIt) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  heart.a.refuse = [&](GuestRange range, const Backing&) {
    if (range.start == Gpa(0x2000)) heart.a.Die();
    return "";
  };
  const Mapping mapping = heart.Map(Of({Ram(0x1000), Ram(0x2000), Bar(0x3000)}));
  EXPECT_TRUE(mapping.live());
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"slot+ 0x1000", "slot+ 0x2000", "slot+ 0x3000", "dma+ A 0x1000",
                    "dma+ A 0x2000 refused", "dma+ B 0x1000", "dma+ B 0x2000", "dma+ B 0x3000"}));
  EXPECT_EQ(heart.Cells(), (Events{"B 0x3000 mapped mmap"}));
}

// What the hardware routes past the IOMMU is reached whatever the domain says, and says so.
TEST(AddressSpace, G6ABarThatPeersReachPastTheIommuIsUnguarded) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Piece mapped = Bar(0x1000);
  Piece refused = Bar(0x2000);
  Piece guarded = Bar(0x3000, kPageSize, nullptr, 1);
  heart.a.unguarded = [](const Backing& backing) {
    return backing.bar == 0 ? "no ACS at 0000:00:1c.0" : "";
  };
  refused.backing.peers_may_map = false;
  Mapping mapping = heart.Map(Of({mapped, refused, guarded}));
  const auto b = heart.Join(heart.b);
  EXPECT_EQ(heart.Cells(),
            (Events{"A 0x1000 unguarded mapped: mmap; no ACS at 0000:00:1c.0",
                    "A 0x2000 unguarded refused: p2p=off; no ACS at 0000:00:1c.0",
                    "A 0x3000 mapped mmap", "B 0x1000 mapped mmap", "B 0x2000 refused p2p=off",
                    "B 0x3000 mapped mmap"}));
  heart.Zap({&mapping});
  EXPECT_THAT(heart.a.Mapped(), IsEmpty()) << "it is mapped all the same";
}

// --- G9: idempotent

TEST(AddressSpace, G9ZappingAnEmptyHandleOrAgainCostsNoCall) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Mapping empty;
  Mapping mapping = heart.Map(Of({Bar(0x1000)}, {EventAt(0x2000)}));
  heart.Zap({&empty, &mapping, &mapping});
  EXPECT_FALSE(mapping.held());
  EXPECT_FALSE(mapping.live());
  heart.recorder.Take();
  const uint64_t generation = heart.space.generation();
  heart.Zap({&mapping, &empty});
  heart.Zap({});
  mapping = Mapping();
  { const Mapping moved = std::move(mapping); }
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  EXPECT_EQ(heart.space.generation(), generation);
}

TEST(AddressSpace, G9OneMapAndItsZapCostOneCallForEachPieceAndDomain) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  const Mapping other = heart.Map(Of({Bar(0x9000)}));
  heart.recorder.Reset();
  { const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}, {EventAt(0x3000)})); }
  EXPECT_EQ(heart.recorder.census(),
            (std::map<std::string, uint64_t>{{"slot+", 2}, {"slot-", 2}, {"event+", 1},
                                             {"event-", 1}, {"dma+", 4}, {"dma-", 4}}));
}

TEST(AddressSpace, AMovedHandleCarriesTheMappingAndItsEndIsTheZap) {
  Heart heart;
  Mapping first = heart.Map(Of({Bar(0x1000)}));
  {
    Mapping second = std::move(first);
    EXPECT_FALSE(first.held());  // NOLINT(bugprone-use-after-move)
    EXPECT_FALSE(first.live());
    EXPECT_TRUE(second.live());
    Mapping third = heart.Map(Of({Bar(0x2000)}));
    third = std::move(second);
    EXPECT_FALSE(heart.Finds(0x2000));
    EXPECT_TRUE(heart.Finds(0x1000));
    Mapping& self = third;
    third = std::move(self);
    EXPECT_TRUE(third.live());
  }
  EXPECT_FALSE(heart.Finds(0x1000));
}

// --- Lookups

TEST(AddressSpace, LooksUpBothWaysToDeviceBarAndOffset) {
  Heart heart;
  FakeOwner owner("0000:01:00.0");
  Piece piece = Bar(0x10000, 0x4000, &owner, 2);
  piece.backing.bar_offset = 0x8000;
  piece.backing.bar_physical = 0xe000'8000;
  const Mapping mapping = heart.Map(Of({piece}));
  for (const uint64_t offset : {0x0ull, 0x1234ull, 0x3fffull}) {
    for (const auto& place :
         {heart.space.Find(Gpa(0x10000 + offset)), heart.space.Find(piece.backing.host + offset)}) {
      ASSERT_TRUE(place);
      EXPECT_EQ(place->range, piece.range);
      EXPECT_EQ(place->backing.owner, &owner);
      EXPECT_EQ(place->backing.bar, 2);
      EXPECT_EQ(place->backing.bar_offset, 0x8000 + offset);
      EXPECT_EQ(place->backing.bar_physical, 0xe000'8000 + offset);
      EXPECT_EQ(place->backing.host, piece.backing.host + offset);
      EXPECT_EQ(place->backing.file->offset, 0x10000 + offset);
    }
  }
  for (const uint64_t offset : {~0ull, 0x4000ull}) {
    EXPECT_FALSE(heart.space.Find(Gpa(0x10000 + offset)));
    EXPECT_FALSE(heart.space.Find(piece.backing.host + offset));
  }
}

// Who remembers what it looked up must learn of a zap before the hardware step at the latest; it
// learns as soon as the pieces have closed.
TEST(AddressSpace, ItsGenerationHasGrownWhenAZapHasClosedItsPieces) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  const uint64_t before = heart.space.generation();
  uint64_t during = before;
  heart.recorder.on_event = [&](const std::string&) {
    during = std::max(during, heart.space.generation());
    EXPECT_GT(heart.space.generation(), before);
  };
  heart.Zap({&mapping});
  EXPECT_GT(during, before);
  EXPECT_GT(heart.space.generation(), during) << "the matrix has changed since";
}

TEST(AddressSpace, ItsGenerationGrowsWithEveryChangeAndWithNothingElse) {
  Heart heart;
  uint64_t last = heart.space.generation();
  const auto grew = [&] { return std::exchange(last, heart.space.generation()) < last; };
  auto a = heart.Join(heart.a);
  EXPECT_TRUE(grew());
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  EXPECT_TRUE(grew());
  Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  EXPECT_FALSE(grew()) << "a claim that waits changes nothing";
  EXPECT_FALSE(heart.space.Map(Of({Bar(0x1000)})));
  EXPECT_TRUE(heart.Finds(0x1000));
  EXPECT_EQ(heart.space.Peers().generation, last);
  EXPECT_FALSE(grew());
  heart.Zap({&mapping});
  EXPECT_TRUE(grew());
  { const auto demotion = heart.space.DemoteBars(); }
  EXPECT_TRUE(grew());
  a.Reset();
  EXPECT_TRUE(grew());
}

// --- What callers must not do

using AddressSpaceDeathTest = ::testing::Test;

TEST(AddressSpace, G12ARangeThatCannotBeIsAnErrorAndCostsNoCall) {
  Heart heart;
  for (const Piece& piece : {Bar(0x1000, 0x800), Bar(0x1800), Bar(0x1000, 0),
                             Bar(~0ull - 0xfff, 0x2000), Bar(0x2000, ~0ull - 0xfff)}) {
    SCOPED_TRACE(fmt::format("{:#x} bytes at {}", piece.range.size, piece.range.start));
    EXPECT_EQ(heart.space.Map(Of({Bar(0x8000), piece})).error().code(), EINVAL);
    EXPECT_EQ(heart.space.MapOrClaim(Of({piece})).error().code(), EINVAL);
  }
  const Placement wraps{.pieces = {}, .events = {}, .whole = {Gpa(~0ull - 0xfff), 0x2000}};
  EXPECT_EQ(heart.space.MapOrClaim(wraps).error().code(), EINVAL);
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
}

TEST(AddressSpaceDeathTest, ItStopsRatherThanPlaceWhatNoCallerMayAskFor) {
  Heart heart;
  EXPECT_DEATH((void)heart.Map(Of({Bar(0x1000, 0x2000), Bar(0x2000)})), "CHECK");
  Piece crooked = Bar(0x1000);
  crooked.backing.host = Hva(kHost + 0x10);
  EXPECT_DEATH((void)heart.Map(Of({crooked})), "CHECK");
}

TEST(AddressSpaceDeathTest, ItOutlivesItsPinsAndDemotions) {
  EXPECT_DEATH(
      {
        std::optional<AddressSpace::Demotion> demotion;
        RecordingSlots slots(*new Recorder);
        AddressSpace space(slots);
        demotion.emplace(space.DemoteBars());
      },
      "1 demotions outlive the address space");
  EXPECT_DEATH(
      {
        std::optional<PieceTable::Pin> pin;
        Heart heart(std::chrono::milliseconds(1));
        const Mapping mapping = heart.Map(Of({Bar(0x1000)}));
        pin.emplace(*heart.space.TryPin({Gpa(0x1000), 1}));
      },
      "pins on 1 pieces outlive the address space");
}

TEST(AddressSpaceDeathTest, ItOutlivesItsMappingsAndDomains) {
  EXPECT_DEATH(
      {
        RecordingDomain* const domain = new RecordingDomain(*new Recorder, "A");
        Mapping mapping;
        AddressSpace::DomainHandle handle;
        RecordingSlots slots(*new Recorder);
        AddressSpace space(slots);
        handle = space.AddDomain(*domain).value();
        mapping = space.Map(Of({Bar(0x1000)})).value();
      },
      "1 mappings outlive the address space");
}

TEST(AddressSpaceDeathTest, G5WithoutAnEmergencyHandlerWhatCannotBeTakenAwayStopsTheProcess) {
  EXPECT_DEATH(
      {
        Recorder recorder;
        RecordingSlots slots(recorder);
        AddressSpace space(slots);
        Mapping mapping = space.Map(Of({Bar(0x1000)})).value();
        recorder.Fail("slot-", 1, Recorder::kForever);
      },
      "injected");
}

}  // namespace
}  // namespace crossbar::testing
