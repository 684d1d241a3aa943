#include "memory/address.h"

#include <gtest/gtest.h>

namespace crossbar {
namespace {

constexpr GuestRange Range(uint64_t start, uint64_t size) { return {Gpa(start), size}; }

TEST(GuestRange, ContainsItsFirstAndLastByteAndNoOther) {
  const GuestRange range = Range(0x1000, 0x1000);
  EXPECT_TRUE(range.Contains(Gpa(0x1000)));
  EXPECT_TRUE(range.Contains(Gpa(0x1fff)));
  EXPECT_FALSE(range.Contains(Gpa(0xfff)));
  EXPECT_FALSE(range.Contains(Gpa(0x2000)));
}

TEST(GuestRange, ReachesTheLastByteOfTheAddressSpace) {
  const GuestRange top = Range(~0ull - 0xfff, 0x1000);
  EXPECT_TRUE(top.Contains(Gpa(~0ull)));
  EXPECT_FALSE(top.Contains(Gpa(0)));
  EXPECT_TRUE(top.Overlaps(Range(~0ull, 1)));
  EXPECT_FALSE(top.Overlaps(Range(0, 0x1000)));
  EXPECT_FALSE(GuestRange::Checked(~0ull, 2));
  EXPECT_TRUE(GuestRange::Checked(~0ull, 1));
  EXPECT_TRUE(GuestRange::Checked(0, ~0ull));
}

TEST(GuestRange, NeighboursDoNotOverlap) {
  EXPECT_FALSE(Range(0, 0x1000).Overlaps(Range(0x1000, 0x1000)));
  EXPECT_TRUE(Range(0, 0x1001).Overlaps(Range(0x1000, 0x1000)));
  EXPECT_FALSE(Range(0, 0).Overlaps(Range(0, 0x1000)));
}

TEST(GuestRange, ContainsOnlyRangesThatLieWholeWithin) {
  const GuestRange outer = Range(0x1000, 0x3000);
  EXPECT_TRUE(outer.Contains(outer));
  EXPECT_TRUE(outer.Contains(Range(0x3fff, 1)));
  EXPECT_FALSE(outer.Contains(Range(0x3fff, 2)));
  EXPECT_FALSE(outer.Contains(Range(0x1000, ~0ull)));
}

TEST(Address, FormatsInHex) {
  EXPECT_EQ(fmt::format("{} {}", Gpa(0x10), Range(0x1000, 0x1000)), "0x10 0x1000-0x1fff");
}

TEST(Address, AlignmentHelpers) {
  EXPECT_EQ(AlignUp(1, 4096), 4096u);
  EXPECT_EQ(AlignUp(4096, 4096), 4096u);
  EXPECT_EQ(AlignDown(8191, 4096), 4096u);
  EXPECT_TRUE(IsAligned(0, 4096));
}

}  // namespace
}  // namespace crossbar
