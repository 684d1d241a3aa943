#include "memory/peer_table.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

GuestRange Page(uint64_t start) { return {Gpa(start), kPageSize}; }

Backing BarPiece(uint8_t bar) {
  Backing backing;
  backing.kind = Backing::Kind::kBar;
  backing.bar = bar;
  return backing;
}

std::vector<std::string> Cells(const PeerTable& table) {
  std::vector<std::string> cells;
  for (const P2pMatrix::Cell& cell : table.Snapshot(0).cells)
    cells.push_back(fmt::format("{} {} {} {}", cell.initiator, cell.range.start,
                                P2pStateName(cell.state), cell.detail));
  return cells;
}

TEST(PeerTable, TellsAnswersByDomainAndByAddress) {
  PeerTable table;
  table.AddDomain(2, "B");
  table.AddDomain(1, "A");
  for (const uint64_t start : {0x3000u, 0x1000u})
    table.SetMapped(1, Page(start), BarPiece(0), "mmap");
  table.SetMapped(1, Page(0x2000), {}, "mmap");
  table.SetRefused(1, Page(0x3000), BarPiece(0), "full");
  table.SetMapped(2, Page(0x1000), BarPiece(0), "fd");
  EXPECT_TRUE(table.IsMapped(1, Gpa(0x1000)));
  EXPECT_FALSE(table.IsMapped(1, Gpa(0x3000))) << "refused";
  EXPECT_FALSE(table.IsMapped(2, Gpa(0x2000))) << "never asked";
  EXPECT_THAT(table.Mapped(1), ElementsAre(Page(0x1000), Page(0x2000)));
  EXPECT_THAT(Cells(table), ElementsAre("A 0x1000 mapped mmap", "A 0x3000 refused full",
                                        "B 0x1000 mapped fd"))
      << "RAM is no target";
  EXPECT_EQ(table.Snapshot(7).generation, 7u);

  table.Erase(1, Gpa(0x1000));
  table.Erase(1, Gpa(0x1000));
  EXPECT_FALSE(table.IsMapped(1, Gpa(0x1000)));
  table.ErasePiece(Gpa(0x3000));
  table.RemoveDomain(1);
  EXPECT_THAT(Cells(table), ElementsAre("B 0x1000 mapped fd"));
}

TEST(PeerTable, KeepsByBarPieceUntilTheDomainIsForgotten) {
  PeerTable table;
  table.AddDomain(1, "A");
  table.SetMapped(1, Page(0x1000), BarPiece(0), "fd");
  table.SetMapped(1, Page(0x2000), BarPiece(1), "fd");
  table.SetRefused(1, Page(0x3000), BarPiece(2), "full");
  table.Keep(1, Gpa(0x1000), "why");
  table.Keep(1, Gpa(0x1000), "why");
  EXPECT_FALSE(table.IsMapped(1, Gpa(0x1000)));
  table.SetMapped(1, Page(0x8000), BarPiece(0), "fd");
  table.KeepAll(1, "lost");
  EXPECT_THAT(Cells(table), ElementsAre("A 0x2000 unrevoked lost",
                                        "A 0x8000 unrevoked lost, here and elsewhere"));
  table.Revoked(1, Page(0x8000));
  table.Revoked(1, Page(0x2000));
  table.RemoveDomain(1);
  EXPECT_THAT(Cells(table), ElementsAre("A 0x8000 unrevoked lost, here and elsewhere"));
  table.AddDomain(2, "B");
  table.Forget(2);
  table.RemoveDomain(2);
  EXPECT_THAT(Cells(table), ::testing::SizeIs(1));
}

}  // namespace
}  // namespace crossbar
