#include "memory/p2p_matrix.h"

#include <gtest/gtest.h>

namespace crossbar {
namespace {

TEST(P2pMatrix, ReadsAsATableWithOneLineForEachCell) {
  using State = P2pMatrix::Cell::State;
  using std::chrono::milliseconds;
  P2pMatrix matrix;
  matrix.made = std::chrono::steady_clock::now();
  matrix.cells = {
      {"type1 container 0", "0000:01:00.0", 2, 0, {Gpa(0x8000'0000), 0x1000}, State::kMapped,
       "mmap", matrix.made - milliseconds(1500)},
      {"A", "B", 0, 0x1000, {Gpa(0xff'0000'0000), 0x4000'0000}, State::kRefused,
       "beyond 39 bits", matrix.made - milliseconds(86'400'000)},
      {"A", "", 5, 0, {Gpa(0), 0x1000}, State::kUnrevoked, "", matrix.made},
      {"A", "C", 5, 0, {Gpa(0), 0x1000}, State::kUnguarded, "mapped: mmap; no ACS", matrix.made},
  };
  EXPECT_EQ(matrix.ToString(),
            "initiator          target        bar  guest range                                 for"
            "  state\n"
            "type1 container 0  0000:01:00.0    2  0x80000000-0x80000fff                     1.500"
            "  mapped: mmap\n"
            "A                  B               0  0xff00000000-0xff3fffffff             86400.000"
            "  refused: beyond 39 bits\n"
            "A                                  5  0x0-0xfff                                 0.000"
            "  unrevoked\n"
            "A                  C               5  0x0-0xfff                                 0.000"
            "  unguarded: mapped: mmap; no ACS\n");
}

TEST(P2pMatrix, WithoutACellIsOnlyItsHeading) {
  EXPECT_EQ(P2pMatrix().ToString(),
            "initiator  target  bar  guest range                                 for  state\n");
}

}  // namespace
}  // namespace crossbar
