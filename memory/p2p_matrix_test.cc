#include "memory/p2p_matrix.h"

#include <gtest/gtest.h>

namespace crossbar {
namespace {

TEST(P2pMatrix, ReadsAsATableWithOneLineForEachCell) {
  P2pMatrix matrix;
  matrix.cells = {
      {"type1 container 0", "0000:01:00.0", 2, 0, {Gpa(0x8000'0000), 0x1000},
       P2pMatrix::Cell::State::kMapped, "mmap", {}},
      {"A", "B", 0, 0x1000, {Gpa(0xff'0000'0000), 0x4000'0000},
       P2pMatrix::Cell::State::kRefused, "beyond 39 bits", {}},
      {"A", "", 5, 0, {Gpa(0), 0x1000}, P2pMatrix::Cell::State::kUnrevoked, "", {}},
  };
  EXPECT_EQ(matrix.ToString(),
            "initiator          target        bar  guest range                          state\n"
            "type1 container 0  0000:01:00.0    2  0x80000000-0x80000fff                mapped: mmap\n"
            "A                  B               0  0xff00000000-0xff3fffffff            refused: "
            "beyond 39 bits\n"
            "A                                  5  0x0-0xfff                            unrevoked\n");
}

TEST(P2pMatrix, WithoutACellIsOnlyItsHeading) {
  EXPECT_EQ(P2pMatrix().ToString(),
            "initiator  target  bar  guest range                          state\n");
}

}  // namespace
}  // namespace crossbar
