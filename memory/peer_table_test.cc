#include "memory/peer_table.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace crossbar {
namespace {

using ::testing::ElementsAre;

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

TEST(PeerTable, KeepsByBarPieceWhateverLeaves) {
  PeerTable table;
  table.AddDomain(1, "A");
  table.SetMapped(1, Page(0x1000), BarPiece(0), "fd");
  table.SetMapped(1, Page(0x2000), BarPiece(1), "fd");
  table.SetMapped(1, Page(0x8000), BarPiece(0), "fd");
  table.SetRefused(1, Page(0x3000), BarPiece(2), "full");
  table.Keep(1);
  EXPECT_FALSE(table.IsMapped(1, Gpa(0x1000)));
  const auto kept = ElementsAre("A 0x2000 unrevoked the server is lost",
                                "A 0x8000 unrevoked the server is lost, here and elsewhere");
  EXPECT_THAT(Cells(table), kept);
  table.AddDomain(2, "B");
  table.SetMapped(2, Page(0x2000), BarPiece(1), "fd");
  table.ErasePiece(Gpa(0x2000));
  table.RemoveDomain(1);
  EXPECT_THAT(Cells(table), kept);
  table.SetMapped(2, Page(0x2000), BarPiece(1), "fd");
  table.Forget(2);
  EXPECT_FALSE(table.IsMapped(2, Gpa(0x2000)));
  table.RemoveDomain(2);
  EXPECT_THAT(Cells(table), kept);
}

}  // namespace
}  // namespace crossbar
