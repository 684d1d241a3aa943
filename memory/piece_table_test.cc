#include "memory/piece_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <utility>
#include <vector>

namespace crossbar {
namespace {

using namespace std::chrono_literals;

Backing At(uint64_t host, Backing::Kind kind = Backing::Kind::kBar) {
  Backing backing;
  backing.kind = kind;
  backing.host = Hva(host);
  return backing;
}

constexpr GuestRange Range(uint64_t start, uint64_t size) { return {Gpa(start), size}; }

std::chrono::steady_clock::time_point In(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

TEST(PieceTable, FindsByGuestAndHostAddressWithinAPieceOnly) {
  PieceTable table;
  table.Insert(Range(0x1000, 0x1000), At(0x80000));
  table.Insert(Range(0x3000, 0x2000), At(0x70000));
  for (const auto& [address, host] :
       std::vector<std::pair<uint64_t, uint64_t>>{
           {0x1000, 0x80000}, {0x1fff, 0x80fff}, {0x3000, 0x70000}, {0x4fff, 0x71fff}}) {
    EXPECT_EQ(table.Find(Gpa(address))->backing.host, Hva(host));
    EXPECT_EQ(table.Find(Hva(host))->backing.host, Hva(host));
    EXPECT_TRUE(table.Find(Hva(host))->range.Contains(Gpa(address)));
  }
  for (const uint64_t address : {0x0u, 0xfffu, 0x2000u, 0x2fffu, 0x5000u})
    EXPECT_FALSE(table.Find(Gpa(address))) << address;
  for (const uint64_t host : {0x0u, 0x6ffffu, 0x72000u, 0x7ffffu, 0x81000u})
    EXPECT_FALSE(table.Find(Hva(host))) << host;
  EXPECT_FALSE(table.Find(Gpa(~0ull)));
  EXPECT_FALSE(table.Find(Hva(~0ull)));
}

TEST(PieceTable, FindsTheLastByteOfTheAddressSpace) {
  PieceTable table;
  table.Insert(Range(~0ull - 0xfff, 0x1000), At(0x80000));
  EXPECT_TRUE(table.Find(Gpa(~0ull)));
  EXPECT_TRUE(table.TryPin(Range(~0ull, 1)));
  EXPECT_EQ(table.FindOverlap(Range(~0ull - 0x1fff, 0x2000)), Range(~0ull - 0xfff, 0x1000));
  EXPECT_FALSE(table.FindOverlap(Range(0, 0x1000)));
}

TEST(PieceTable, APieceWithoutHostMemoryIsFoundByItsGuestAddressOnly) {
  PieceTable table;
  table.Insert(Range(0x1000, 0x1000), At(0));
  EXPECT_TRUE(table.Find(Gpa(0x1000)));
  EXPECT_FALSE(table.Find(Hva()));
  EXPECT_FALSE(table.Find(Hva(0x10)));
  table.Erase(Gpa(0x1000));
}

TEST(PieceTable, AnAliasAnswersForTheHostMemoryWhenTheFirstPieceLeaves) {
  PieceTable table;
  table.Insert(Range(0x5000, 0x1000), At(0x80000));
  table.Insert(Range(0x1000, 0x2000), At(0x80000));
  EXPECT_EQ(table.Find(Hva(0x80000))->range, Range(0x5000, 0x1000)) << "the first one answers";
  EXPECT_EQ(table.Find(Hva(0x81000))->range, Range(0x1000, 0x2000)) << "beyond the first one's end";
  table.Close(std::array{Gpa(0x5000)});
  EXPECT_EQ(table.Find(Hva(0x80000))->range, Range(0x1000, 0x2000));
  table.Erase(Gpa(0x5000));
  EXPECT_EQ(table.Find(Hva(0x80000))->range, Range(0x1000, 0x2000));
  table.Erase(Gpa(0x1000));
  EXPECT_FALSE(table.Find(Hva(0x80000)));
}

TEST(PieceTable, FindsWhatOverlaps) {
  PieceTable table;
  table.Insert(Range(0x2000, 0x2000), At(0));
  table.Insert(Range(0x6000, 0x1000), At(0));
  EXPECT_FALSE(table.FindOverlap(Range(0x1000, 0x1000)));
  EXPECT_FALSE(table.FindOverlap(Range(0x4000, 0x2000)));
  EXPECT_FALSE(table.FindOverlap(Range(0x7000, 0x1000)));
  EXPECT_EQ(table.FindOverlap(Range(0x1000, 0x1001)), Range(0x2000, 0x2000));
  EXPECT_EQ(table.FindOverlap(Range(0x3fff, 1)), Range(0x2000, 0x2000));
  EXPECT_TRUE(table.FindOverlap(Range(0, ~0ull)));
}

TEST(PieceTable, APinCoversOnlyARangeThatLiesWholeWithinOnePiece) {
  PieceTable table;
  table.Insert(Range(0x1000, 0x1000), At(0x80000));
  table.Insert(Range(0x2000, 0x1000), At(0x81000));
  const auto pin = table.TryPin(Range(0x1800, 0x800));
  ASSERT_TRUE(pin);
  EXPECT_EQ(pin->place().backing.host, Hva(0x80800));
  EXPECT_EQ(pin->place().range, Range(0x1000, 0x1000));
  for (const GuestRange range : {Range(0x1800, 0x801), Range(0x1000, 0), Range(0x800, 0x801),
                                 Range(0x3000, 1), Range(0x1800, ~0ull)})
    EXPECT_FALSE(table.TryPin(range)) << fmt::format("{}", range);
}

TEST(PieceTable, WaitsUntilTheLastPinGoesOrTheDeadlinePasses) {
  PieceTable table;
  const Gpa start(0x1000);
  table.Insert({start, 0x1000}, At(0x80000));
  auto first = table.TryPin({start, 1});
  auto second = table.TryPin({start, 1});
  table.Close({&start, 1});
  EXPECT_FALSE(table.TryPin({start, 1}));
  EXPECT_FALSE(table.WaitUnpinned({&start, 1}, In(5ms)));
  EXPECT_FALSE(table.WaitUnpinned({&start, 1}, In(-5ms)));
  first.reset();
  EXPECT_FALSE(table.WaitUnpinned({&start, 1}, In(5ms)));
  std::thread later([&] {
    std::this_thread::sleep_for(5ms);
    second.reset();
  });
  EXPECT_TRUE(table.WaitUnpinned({&start, 1}, In(20s)));
  later.join();
  EXPECT_TRUE(table.WaitUnpinned({&start, 1}, In(-5ms))) << "nothing to wait for";
}

TEST(PieceTable, AMovedPinCountsOnce) {
  PieceTable table;
  const Gpa start(0x1000);
  table.Insert({start, 0x1000}, At(0x80000));
  {
    PieceTable::Pin pin = *table.TryPin({start, 1});
    const PieceTable::Pin moved = std::move(pin);
    EXPECT_FALSE(table.WaitUnpinned({&start, 1}, In(0ms)));
  }
  EXPECT_TRUE(table.WaitUnpinned({&start, 1}, In(0ms)));
}

TEST(PieceTable, APieceErasedWhilePinnedIsInTheWayAndElseGone) {
  PieceTable table;
  table.Insert(Range(0x1000, 0x1000), At(0x80000));
  auto pin = table.TryPin(Range(0x1000, 1));
  table.Erase(Gpa(0x1000));
  EXPECT_TRUE(table.FindOverlap(Range(0x1000, 1)));
  EXPECT_FALSE(table.Find(Gpa(0x1000)));
  EXPECT_FALSE(table.Find(Hva(0x80000)));
  pin.reset();
  EXPECT_FALSE(table.FindOverlap(Range(0x1000, 1)));
  EXPECT_EQ(table.size(), 0u);
}

}  // namespace
}  // namespace crossbar
