// Claims and moves: a BAR that cannot be placed because another is there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/testing/heart.h"

namespace crossbar::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Claims : ::testing::Test {
  Heart heart;
  const AddressSpace::DomainHandle a = heart.Join(heart.a);
  Mapping there = heart.Map(Of({Bar(0x1000, 0x2000)}));
  const Events nothing = heart.recorder.Take();
};

TEST_F(Claims, G4AClaimCostsNoCallAndIsNotLiveUntilTheOtherLeaves) {
  Mapping claim = heart.Claim(Of({Bar(0x2000, 0x2000)}, {EventAt(0x8000)}));
  EXPECT_FALSE(claim.live());
  EXPECT_TRUE(claim.held());
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  EXPECT_FALSE(heart.Finds(0x3000));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 mapped mmap"}));
  heart.Zap({&there});
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- done A 0x1000", "slot- 0x1000", "slot+ 0x2000",
                    "event+ 0x8000", "dma+ A 0x2000"}));
  EXPECT_TRUE(claim.live());
  EXPECT_TRUE(heart.Finds(0x3000));
}

TEST_F(Claims, WhatIsFreeIsPlacedAtOnce) {
  const Mapping mapping = heart.Claim(Of({Bar(0x5000)}));
  EXPECT_TRUE(mapping.live());
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x5000", "dma+ A 0x5000"}));
}

TEST_F(Claims, WhatFailsForAnotherReasonIsNoClaim) {
  heart.recorder.Fail("slot+");
  const auto mapping = heart.space.MapOrClaim(Of({Bar(0x5000)}));
  ASSERT_FALSE(mapping);
  EXPECT_EQ(mapping.error().code(), EIO);
}

TEST_F(Claims, ClaimsArePlacedInTheOrderOfClaiming) {
  Mapping first = heart.Claim(Of({Bar(0x1000)}));
  Mapping second = heart.Claim(Of({Bar(0x1000)}));
  Mapping third = heart.Claim(Of({Bar(0x2000)}));
  heart.Zap({&there});
  EXPECT_TRUE(first.live());
  EXPECT_FALSE(second.live());
  EXPECT_TRUE(third.live());
  heart.Zap({&first});
  EXPECT_TRUE(second.live());
}

TEST_F(Claims, AClaimHoldsUpThoseThatCameAfterItWhereTheyMeetAndNobodyElse) {
  Mapping neighbour = heart.Map(Of({Bar(0x3000)}));
  Mapping wide = heart.Claim(Of({Bar(0x1000, 0x3000)}));
  const Mapping narrow = heart.Claim(Of({Bar(0x2000)}));
  heart.Zap({&there});
  EXPECT_FALSE(wide.live());
  EXPECT_FALSE(narrow.live()) << "what a claim answers, trapped, is its own";
  EXPECT_TRUE(heart.Claim(Of({Bar(0x4000)})).live());
  EXPECT_FALSE(heart.space.Map(Of({Bar(0x1000)}))) << "nor may one that does not wait";
  heart.Zap({&neighbour});
  EXPECT_TRUE(wide.live());
  EXPECT_FALSE(narrow.live());
  heart.Zap({&wide});
  EXPECT_TRUE(narrow.live());
}

TEST_F(Claims, AClaimThatEndsMakesRoomForThoseAfterIt) {
  Mapping wide = heart.Claim(Of({Bar(0x2000, 0x2000)}));
  const Mapping narrow = heart.Claim(Of({Bar(0x3000)}));
  heart.Zap({&wide});
  EXPECT_TRUE(narrow.live());
}

// --- BARs of which some or all is trapped

Placement Whole(uint64_t start, uint64_t size, std::vector<Piece> pieces = {}) {
  return {std::move(pieces), {}, {Gpa(start), size}};
}

TEST_F(Claims, G4WhatIsTrappedCostsNoCallAndIsInTheWayOfWhatComesLater) {
  Mapping trapped = heart.Claim(Whole(0x5080, 0x40));
  EXPECT_TRUE(trapped.live());
  const Mapping beside = heart.Claim(Whole(0x50c0, 0x40));
  EXPECT_TRUE(beside.live()) << "by the byte";
  EXPECT_FALSE(heart.Claim(Whole(0x50bf, 1)).live());
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  const Mapping page = heart.Claim(Of({Bar(0x5000)}));
  EXPECT_FALSE(page.live());
  heart.Zap({&trapped});
  EXPECT_FALSE(page.live()) << "the other is still there";
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
}

TEST_F(Claims, WhatIsTrappedWaitsForAMappedOneAndIsNextInItsTurn) {
  Mapping trapped = heart.Claim(Whole(0x1000, 0x100));
  const Mapping mapped = heart.Claim(Of({Bar(0x1000)}));
  EXPECT_FALSE(trapped.live());
  heart.Zap({&there});
  EXPECT_TRUE(trapped.live());
  EXPECT_FALSE(mapped.live());
  heart.Zap({&trapped});
  EXPECT_TRUE(mapped.live());
}

TEST_F(Claims, APageThatIsTrappedWithinABarIsItsOwn) {
  Mapping bar = heart.Claim(Whole(0x10000, 0x4000, {Bar(0x10000), Bar(0x12000, 0x2000)}));
  EXPECT_TRUE(bar.live());
  const Mapping over = heart.Claim(Of({Bar(0x11000)}));
  EXPECT_FALSE(over.live());
  heart.Zap({&bar});
  EXPECT_TRUE(over.live());
}

TEST_F(Claims, TheirOrderIsThatOfComing) {
  Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  const Mapping free = heart.Claim(Of({Bar(0x9000)}));
  EXPECT_LT(there.order(), claim.order());
  EXPECT_LT(claim.order(), free.order());
  heart.Zap({&claim});
  EXPECT_GT(heart.Claim(Of({Bar(0x1000)})).order(), free.order()) << "who comes back is last";
}

TEST_F(Claims, G9AClaimIsZappedSilentlyAndNeverPlacedAfterwards) {
  Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  Mapping* const zapped[] = {&claim};
  EXPECT_EQ(heart.space.Zap(zapped).pieces, 0u);
  EXPECT_FALSE(claim.held());
  { const Mapping another = heart.Claim(Of({Bar(0x1000)})); }
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  heart.Zap({&there});
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- done A 0x1000", "slot- 0x1000"}));
}

TEST_F(Claims, AClaimThatIsZappedTogetherWithWhatItWaitsForIsNotPlaced) {
  Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  heart.Zap({&claim, &there});
  EXPECT_THAT(heart.slots.Slots(), IsEmpty());
  Mapping first = heart.Map(Of({Bar(0x1000)}));
  Mapping second = heart.Claim(Of({Bar(0x1000)}));
  heart.Zap({&first, &second});
  EXPECT_THAT(heart.slots.Slots(), IsEmpty());
}

TEST_F(Claims, G3AClaimWhosePlacementFailsStaysAClaimAndIsTriedAgain) {
  const Mapping claim = heart.Claim(Of({Bar(0x1000), Ram(0x2000)}));
  Mapping after = heart.Claim(Of({Bar(0x1000)}));
  heart.recorder.Fail("dma+", 2);
  heart.Zap({&there});
  EXPECT_FALSE(claim.live());
  EXPECT_TRUE(claim.held());
  EXPECT_FALSE(after.live()) << "it is trapped there meanwhile, and came first";
  EXPECT_THAT(heart.a.Mapped(), IsEmpty());
  EXPECT_THAT(heart.slots.Slots(), IsEmpty());
  heart.Zap({&after});
  EXPECT_TRUE(claim.live());
}

TEST_F(Claims, ADomainThatJoinsGetsAClaimOnlyOnceItIsPlaced) {
  const Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  const auto b = heart.Join(heart.b);
  EXPECT_THAT(heart.b.Mapped(), ElementsAre(GuestRange{Gpa(0x1000), 0x2000}));
  heart.Zap({&there});
  EXPECT_THAT(heart.b.Mapped(), ElementsAre(GuestRange{Gpa(0x1000), 0x1000}));
}

// A BAR moves by being zapped and placed anew: its handle never holds both places.
TEST_F(Claims, G2ABarThatMovesLeavesItsOldPlaceBeforeItHasTheNew) {
  heart.Zap({&there});
  there = heart.Claim(Of({Bar(0x6000)}));
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- done A 0x1000", "slot- 0x1000", "slot+ 0x6000",
                    "dma+ A 0x6000"}));
}

// Guests do this when they renumber BARs while decode is on.
TEST_F(Claims, TwoBarsSwapTheirPlaces) {
  Mapping other = heart.Map(Of({Bar(0x6000, 0x2000)}));
  heart.Zap({&there});
  there = heart.Claim(Of({Bar(0x6000, 0x2000)}));
  EXPECT_FALSE(there.live());
  heart.Zap({&other});
  EXPECT_TRUE(there.live());
  other = heart.Claim(Of({Bar(0x1000, 0x2000)}));
  EXPECT_TRUE(other.live());
  EXPECT_THAT(heart.a.Mapped(), SizeIs(2));
}

// The handle that is assigned to lets go first, and what it lets go may be what the new one waits
// for.
TEST_F(Claims, AClaimAssignedOverWhatItWaitsForIsPlaced) {
  there = heart.Claim(Of({Bar(0x2000)}));
  EXPECT_TRUE(there.live());
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
}

TEST_F(Claims, ARolledBackMapLeavesClaimsAsTheyWere) {
  const Mapping claim = heart.Claim(Of({Bar(0x2000), Bar(0x5000)}));
  heart.recorder.Fail("slot+", 2);
  EXPECT_FALSE(heart.space.Map(Of({Bar(0x6000), Bar(0x7000)})));
  EXPECT_FALSE(claim.live());
  heart.Zap({&there});
  EXPECT_TRUE(claim.live());
}

// --- A hold: at a reboot and at the end of the VM

TEST_F(Claims, NoneIsPlacedWhileAHoldLives) {
  Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  Mapping another = heart.Claim(Of({Bar(0x2000)}));
  {
    std::optional<AddressSpace::ClaimHold> outer(heart.space);
    const AddressSpace::ClaimHold inner(heart.space);
    heart.Zap({&there});
    outer.reset();
    EXPECT_FALSE(claim.live());
    EXPECT_FALSE(another.live());
    EXPECT_EQ(heart.recorder.Take(),
              (Events{"dma- start A 0x1000", "dma- done A 0x1000", "slot- 0x1000"}));
    heart.Zap({&another});
  }
  EXPECT_TRUE(claim.live()) << "what is left when it ends is placed";
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x1000", "dma+ A 0x1000"}));
}

// A pin that outlasts its zap is an emergency; should the VM live on, the next zap finds the place
// free.
TEST(AddressSpace, AClaimThatWaitsOnAPinThatWasStuckIsPlacedByTheNextZap) {
  Heart heart(std::chrono::milliseconds(5));
  Mapping there = heart.Map(Of({Bar(0x1000)}));
  Mapping other = heart.Map(Of({Bar(0x9000)}));
  const Mapping claim = heart.Claim(Of({Bar(0x1000)}));
  std::optional pin(heart.space.TryPin({Gpa(0x1000), 1}));
  heart.Zap({&there});
  EXPECT_THAT(heart.unsafe, SizeIs(1));
  EXPECT_FALSE(claim.live());
  pin.reset();
  heart.Zap({&other});
  EXPECT_TRUE(claim.live());
}

// --- Demotion: BAR slots away for a while

struct Demoted : ::testing::Test {
  Heart heart;
  const AddressSpace::DomainHandle a = heart.Join(heart.a);
  const Mapping ram = heart.Map(Of({Ram(0x10000)}));
  Mapping bar = heart.Map(Of({Bar(0x1000), Bar(0x2000)}, {EventAt(0x8000)}));
  const Events nothing = heart.recorder.Take();
};

TEST_F(Demoted, OnlyBarSlotsGoAndTheyComeBack) {
  {
    const auto demotion = heart.space.DemoteBars();
    EXPECT_EQ(demotion.demoted(), 2u);
    EXPECT_EQ(heart.recorder.Take(), (Events{"slot- 0x1000", "slot- 0x2000"}));
    EXPECT_TRUE(bar.live());
    EXPECT_TRUE(heart.Finds(0x1000)) << "a trapped access must find its device";
    EXPECT_THAT(heart.a.Mapped(), SizeIs(3));
  }
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x1000", "slot+ 0x2000"}));
  EXPECT_THAT(heart.slots.Slots(), SizeIs(3));
}

TEST_F(Demoted, AZapMeanwhileTakesNoSlotAwayTwiceAndNoneComesBack) {
  {
    const auto demotion = heart.space.DemoteBars();
    heart.recorder.Take();
    heart.Zap({&bar});
    EXPECT_EQ(heart.recorder.Take(),
              (Events{"dma- start A 0x1000", "dma- start A 0x2000", "dma- done A 0x1000",
                      "dma- done A 0x2000", "event- 0x8000"}));
  }
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
}

TEST_F(Demoted, OnlyTheLastEndOfNestedDemotionsRestores) {
  std::optional outer(heart.space.DemoteBars());
  const Mapping between = heart.Map(Of({Bar(0x5000)}));
  EXPECT_THAT(heart.slots.Slots(), SizeIs(2)) << "what is placed meanwhile has its slot";
  std::optional inner(heart.space.DemoteBars());
  EXPECT_EQ(inner->demoted(), 3u) << "all that trap now";
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
  outer.reset();
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
  {
    const AddressSpace::Demotion moved = std::move(*inner);
    inner.reset();
    EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
  }
  EXPECT_THAT(heart.slots.Slots(), SizeIs(4));
}

TEST_F(Demoted, AnotherBarMayTakeTheAddressMeanwhile) {
  Mapping claim = heart.Claim(Of({Bar(0x2000, 0x2000)}));
  {
    const auto demotion = heart.space.DemoteBars();
    heart.Zap({&bar});
    EXPECT_TRUE(claim.live());
    EXPECT_THAT(heart.slots.Slots(), SizeIs(2));
  }
  EXPECT_THAT(heart.slots.Slots(), SizeIs(2));
}

TEST_F(Demoted, ADomainThatJoinsMeanwhileGetsTheBarsAndNoSlotMoves) {
  const auto demotion = heart.space.DemoteBars();
  heart.recorder.Take();
  const auto b = heart.Join(heart.b);
  EXPECT_EQ(heart.recorder.Take(), (Events{"dma+ B 0x1000", "dma+ B 0x2000", "dma+ B 0x10000"}));
}

TEST_F(Demoted, ASlotThatDoesNotComeBackLeavesItsBarTrappedAndZapsCleanly) {
  heart.recorder.Fail("slot+", 1, 3);
  { const auto demotion = heart.space.DemoteBars(); }
  EXPECT_TRUE(bar.live());
  EXPECT_THAT(heart.slots.Slots(), SizeIs(2));
  EXPECT_EQ(heart.space.trapped_pieces(), 1u);
  { const auto again = heart.space.DemoteBars(); }
  EXPECT_THAT(heart.slots.Slots(), SizeIs(3));
  EXPECT_EQ(heart.space.trapped_pieces(), 0u);
  heart.recorder.Fail("slot+", 1, 3);
  { const auto demotion = heart.space.DemoteBars(); }
  EXPECT_EQ(heart.space.trapped_pieces(), 1u);
  heart.Zap({&bar});
  EXPECT_EQ(heart.space.trapped_pieces(), 0u);
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

TEST_F(Demoted, ASlotThatDoesNotComeBackIsTriedAgain) {
  heart.recorder.Fail("slot+", 1, 2);
  { const auto demotion = heart.space.DemoteBars(); }
  EXPECT_EQ(heart.recorder.fired(), 2u);
  EXPECT_THAT(heart.slots.Slots(), SizeIs(3));
  EXPECT_EQ(heart.space.trapped_pieces(), 0u);
}

TEST_F(Demoted, G5ASlotThatDoesNotGoIsTriedAgain) {
  heart.recorder.Fail("slot-", 1, 2);
  const auto demotion = heart.space.DemoteBars();
  EXPECT_EQ(heart.recorder.fired(), 2u);
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

}  // namespace
}  // namespace crossbar::testing
