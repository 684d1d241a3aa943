#include "boot/placement.h"

#include <gtest/gtest.h>

#include <array>

namespace crossbar {
namespace {

constexpr GuestRange kAll{Gpa(0), ~0ull};

class PlacementTest : public testing::Test {
 protected:
  GuestRam ram_ =
      GuestRam::Create(std::array{GuestRange{Gpa(0), 0x10000}, GuestRange{Gpa(0x100000), 0x10000}})
          .value();
  Placement placement_{ram_};
};

std::string ErrorOf(const auto& result) {
  return result ? "none" : result.error().ToString();
}

TEST_F(PlacementTest, ClaimsUpToTheEdgesOfABankAndNotPastThem) {
  EXPECT_TRUE(placement_.Claim({Gpa(0), 0x10000}, "low"));
  EXPECT_TRUE(placement_.Claim({Gpa(0x100000), 0x10000}, "high"));
  Placement other(ram_);
  EXPECT_FALSE(other.Claim({Gpa(0), 0x10001}, "too long"));
  EXPECT_FALSE(other.Claim({Gpa(0xfffff), 2}, "too early"));
  EXPECT_FALSE(other.Claim({Gpa(0x1000), ~0ull - 0x1000}, "almost everything"));
  EXPECT_EQ(ErrorOf(other.Claim({Gpa(0x20000), 0x10}, "hole")),
            "hole needs 0x20000-0x2000f, which is not all RAM; give the guest more memory "
            "(--memory)");
}

TEST_F(PlacementTest, ClaimsNeverOverlap) {
  ASSERT_TRUE(placement_.Claim({Gpa(0x1000), 0x1000}, "first"));
  EXPECT_TRUE(placement_.Claim({Gpa(0x2000), 1}, "after"));
  EXPECT_TRUE(placement_.Claim({Gpa(0xfff), 1}, "before"));
  EXPECT_FALSE(placement_.Claim({Gpa(0x1fff), 1}, "last byte"));
  EXPECT_FALSE(placement_.Claim({Gpa(0), 0x10000}, "around"));
  EXPECT_EQ(ErrorOf(placement_.Claim({Gpa(0x1800), 0x10}, "second")),
            "second needs 0x1800-0x180f, but first is at 0x1000-0x1fff; link the kernel to load "
            "elsewhere, at 1 MiB or above");
}

TEST_F(PlacementTest, HighestSkipsWhatIsTakenAndFallsBackToTheLowerBank) {
  EXPECT_EQ(placement_.ClaimHighest(0x1800, 0x1000, kAll, "a").value().start, Gpa(0x10e000));
  EXPECT_EQ(placement_.ClaimHighest(0x1000, 0x1000, kAll, "b").value().start, Gpa(0x10d000));
  // The 0x800 bytes above `a` are still free.
  EXPECT_EQ(placement_.ClaimHighest(0x800, 1, kAll, "c").value().start, Gpa(0x10f800));
  EXPECT_EQ(placement_.ClaimHighest(0x10000, 0x1000, kAll, "d").value().start, Gpa(0));
  EXPECT_FALSE(placement_.ClaimHighest(0x10000, 0x1000, kAll, "e"));
}

TEST_F(PlacementTest, HighestStaysWithinItsBounds) {
  const GuestRange bounds{Gpa(0x8000), 0x100000 - 0x8000 + 0x2000};  // to 0x101fff
  EXPECT_EQ(placement_.ClaimHighest(0x2000, 0x1000, bounds, "a").value().start, Gpa(0x100000));
  EXPECT_EQ(placement_.ClaimHighest(0x8000, 0x1000, bounds, "b").value().start, Gpa(0x8000));
  EXPECT_EQ(ErrorOf(placement_.ClaimHighest(1, 1, bounds, "c")),
            "c needs 0x1 bytes, and 0x8000-0x101fff has no free RAM of that size (RAM is 0 MiB); "
            "give the guest more memory (--memory)");
  EXPECT_FALSE(placement_.ClaimHighest(1, 1, {Gpa(0), 0}, "no bounds"));
}

TEST_F(PlacementTest, LowestRoundsUpAndSkipsWhatIsTaken) {
  ASSERT_TRUE(placement_.Claim({Gpa(0x2000), 0x10}, "in the way"));
  EXPECT_EQ(placement_.ClaimLowest(0x1000, 0x1000, {Gpa(0x1234), kMiB}, "a").value().start,
            Gpa(0x3000));
  EXPECT_EQ(placement_.ClaimLowest(0x1001, 0x1000, {Gpa(0), kMiB}, "b").value().start, Gpa(0));
  EXPECT_EQ(placement_.ClaimLowest(0x10000, 0x100000, kAll, "c").value().start, Gpa(0x100000));
  EXPECT_FALSE(placement_.ClaimLowest(0x10000, 0x1000, kAll, "d"));
}

TEST_F(PlacementTest, SizesAndAlignmentsThatWrapFindNoPlace) {
  EXPECT_FALSE(placement_.ClaimLowest(~0ull, 1, kAll, "huge"));
  EXPECT_FALSE(placement_.ClaimHighest(~0ull, 1, kAll, "huge"));
  EXPECT_FALSE(placement_.ClaimLowest(1, 1ull << 63, {Gpa(1), ~0ull - 1}, "sparse"));

  constexpr GuestRange kTop{Gpa(~0xffffull), 0x10000};  // ends at 2^64
  const GuestRam ram = GuestRam::Create(std::array{kTop}).value();
  Placement top(ram);
  EXPECT_FALSE(top.ClaimLowest(1, 1ull << 63, {Gpa(1), ~0ull}, "wraps to 0"));
  EXPECT_EQ(top.ClaimHighest(0x1000, 0x1000, kTop, "last").value().last(), Gpa(~0ull));
  EXPECT_EQ(top.ClaimLowest(0xf000, 0x1000, kTop, "rest").value().start, kTop.start);
}

}  // namespace
}  // namespace crossbar
