// Domains that join, leave, go and refuse, and what the matrix says of them. Those that are lost:
// address_space_lost_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/testing/heart.h"

namespace crossbar::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(AddressSpace, ADomainThatJoinsGetsEveryLivePieceInOrderOfAddress) {
  Heart heart;
  const Mapping high = heart.Map(Of({Bar(0x9000), Bar(0x3000)}, {EventAt(0x5000)}));
  const Mapping low = heart.Map(Of({Ram(0x1000)}));
  const Mapping claim = heart.Claim(Of({Bar(0x3000, 0x2000)}));
  Mapping gone = heart.Map(Of({Bar(0x7000)}));
  heart.Zap({&gone});
  heart.recorder.Take();
  const auto a = heart.Join(heart.a);
  EXPECT_EQ(heart.recorder.Take(), (Events{"dma+ A 0x1000", "dma+ A 0x3000", "dma+ A 0x9000"}));
}

TEST(AddressSpace, G3ADomainThatRefusesRamDoesNotJoinAndKeepsNothing) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Ram(0x2000), Ram(0x3000), Bar(0x4000)}));
  heart.recorder.Take();
  heart.recorder.Fail("dma+", 3);
  const uint64_t generation = heart.space.generation();
  const auto joined = heart.space.AddDomain(heart.b);
  ASSERT_FALSE(joined);
  EXPECT_EQ(joined.error().message(), "B cannot map guest RAM 0x3000-0x3fff: injected");
  EXPECT_EQ(
      heart.recorder.Take(),
      (Events{"dma+ B 0x1000", "dma+ B 0x2000", "dma+ B 0x3000 refused", "dma- start B 0x1000",
              "dma- start B 0x2000", "dma- done B 0x1000", "dma- done B 0x2000"}));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 mapped mmap", "A 0x4000 mapped mmap"}));
  EXPECT_GT(heart.space.generation(), generation) << "who looked meanwhile saw cells of B";
  EXPECT_THAT(heart.a.Mapped(), SizeIs(4));
  const auto again = heart.Join(heart.b);
  EXPECT_THAT(heart.b.Mapped(), SizeIs(4));
}

TEST(AddressSpace, G5AnUnmapThatFailsInTheRollbackOfAJoinIsTriedAgain) {
  Heart heart;
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Ram(0x2000)}));
  heart.recorder.Fail("dma+", 2);
  heart.a.AnswerUnmaps({Answer::kShort, Answer::kFailed});
  EXPECT_FALSE(heart.space.AddDomain(heart.a));
  EXPECT_THAT(heart.a.Mapped(), IsEmpty());
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

TEST(AddressSpace, ADomainThatDiesWhileItJoinsIsRefusedWithoutAnotherCall) {
  Heart heart;
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000), Bar(0x3000)}));
  heart.recorder.Take();
  heart.a.refuse = [&](GuestRange range, const Backing&) {
    if (range.start == Gpa(0x2000)) heart.a.Die();
    return "";
  };
  const auto joined = heart.space.AddDomain(heart.a);
  ASSERT_FALSE(joined);
  EXPECT_THAT(joined.error().message(), HasSubstr("the server exited"));
  EXPECT_EQ(heart.recorder.Take(), (Events{"dma+ A 0x1000", "dma+ A 0x2000 refused"}));
  EXPECT_THAT(heart.Cells(), IsEmpty());
}

TEST(AddressSpace, G6ABarThatAJoiningDomainRefusesIsACell) {
  Heart heart;
  const Mapping mapping = heart.Map(Of({Ram(0x1000), Bar(0x2000), Bar(0x3000)}));
  heart.recorder.Fail("dma+", 2);
  const auto a = heart.Join(heart.a);
  EXPECT_EQ(heart.Cells(), (Events{"A 0x2000 refused injected", "A 0x3000 mapped mmap"}));
}

TEST(AddressSpace, ADomainThatLeavesGivesBackEveryPieceAndTouchesNoSlot) {
  Heart heart;
  auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  const Mapping mapping = heart.Map(Of({Ram(0x1000), Bar(0x2000)}));
  heart.recorder.Take();
  a.Reset();
  EXPECT_EQ(heart.recorder.Take(), (Events{"dma- start A 0x1000", "dma- start A 0x2000",
                                           "dma- done A 0x1000", "dma- done A 0x2000"}));
  EXPECT_EQ(heart.Cells(), (Events{"B 0x2000 mapped mmap"}));
  a.Reset();
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
  const Mapping next = heart.Map(Of({Bar(0x3000)}));
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x3000", "dma+ B 0x3000"}));
}

TEST(AddressSpace, G5ADomainThatCannotGiveBackAPieceIsAnEmergency) {
  Heart heart;
  auto a = heart.Join(heart.a);
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  heart.recorder.Fail("dma-", 1, Recorder::kForever);
  a.Reset();
  EXPECT_THAT(heart.unsafe, SizeIs(1));
  EXPECT_THAT(heart.Cells(), IsEmpty());
  heart.a.Drop();
}

TEST(AddressSpace, AMovedDomainHandleCarriesTheMembership) {
  Heart heart;
  auto first = heart.Join(heart.a);
  auto second = heart.Join(heart.b);
  const Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  second = std::move(first);
  EXPECT_THAT(heart.b.Mapped(), IsEmpty());
  EXPECT_THAT(heart.a.Mapped(), SizeIs(1));
  { const auto third = std::move(second); }
  EXPECT_THAT(heart.a.Mapped(), IsEmpty());
}

TEST(AddressSpace, G7ADomainThatAMapFindsGoneCostsNoMoreCalls) {
  Heart heart;
  auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  heart.a.Die();
  Mapping mapping = heart.Map(Of({Ram(0x1000), Bar(0x2000)}));
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x1000", "slot+ 0x2000", "dma+ A 0x1000 refused",
                                           "dma+ B 0x1000", "dma+ B 0x2000"}));
  EXPECT_EQ(heart.Cells(), (Events{"B 0x2000 mapped mmap"}));
  heart.Zap({&mapping});
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start B 0x1000", "dma- start B 0x2000", "dma- done B 0x1000",
                    "dma- done B 0x2000", "slot- 0x2000", "slot- 0x1000"}));
  a.Reset();
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
}

// Each ticket is awaited, whatever became of its domain meanwhile.
TEST(AddressSpace, G7ADomainThatEndsInTheMiddleOfAZapIsNotAskedAgain) {
  for (const Answer after : {Answer::kFailed, Answer::kShort, Answer::kDone}) {
    Heart heart;
    const auto a = heart.Join(heart.a);
    const auto b = heart.Join(heart.b);
    Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000), Bar(0x3000)}));
    const Mapping other = heart.Map(Of({Bar(0x9000)}));
    heart.recorder.Take();
    heart.a.AnswerUnmaps({Answer::kFailed, Answer::kGone, after});
    heart.a.ended_says_so = false;
    heart.Zap({&mapping});
    const Events events = heart.recorder.Take();
    EXPECT_EQ(
        std::ranges::count_if(
            events, [](const std::string& event) { return event.starts_with("dma- start A"); }),
        3);
    EXPECT_THAT(heart.unsafe, IsEmpty());
    EXPECT_EQ(heart.Cells(), (Events{"B 0x9000 mapped mmap"}));
    EXPECT_THAT(heart.b.Mapped(), SizeIs(1));
  }
}

TEST(AddressSpace, G5ADomainThatDiesDuringTheOnlyTryIsNoEmergency) {
  Recorder recorder;
  RecordingSlots slots(recorder);
  RecordingDomain domain(recorder, "A");
  int unsafe = 0;
  AddressSpace space(slots, {.tries = 1, .on_unsafe = [&](const Error&) { ++unsafe; }});
  const auto handle = space.AddDomain(domain).value();
  Mapping mapping = space.Map(Of({Bar(0x1000), Bar(0x2000)})).value();
  domain.AnswerUnmaps({Answer::kFailed, Answer::kGone});
  Mapping* const mappings[] = {&mapping};
  space.Zap(mappings);
  EXPECT_EQ(unsafe, 0);
}

// --- The matrix

TEST(AddressSpace, TheMatrixHasACellForEachInitiatorInOrderOfJoiningAndBarByAddress) {
  Heart heart;
  FakeOwner nic("0000:01:00.0");
  FakeOwner gpu("0000:02:00.0");
  const auto b = heart.Join(heart.b);
  const auto start = std::chrono::steady_clock::now();
  const Mapping ram = heart.Map(Of({Ram(0x1000)}));
  const Mapping high = heart.Map(Of({Bar(0x9000, 0x2000, &gpu, 4)}));
  Piece piece = Bar(0x3000, 0x1000, &nic, 2);
  piece.backing.bar_offset = 0x5000;
  const Mapping low = heart.Map(Of({piece}));
  const auto before_a = std::chrono::steady_clock::now();
  heart.a.refuse = [](GuestRange range, const Backing&) {
    return range.start == Gpa(0x9000) ? "no handle" : "";
  };
  const auto a = heart.Join(heart.a);

  const P2pMatrix matrix = heart.space.Peers();
  ASSERT_THAT(matrix.cells, SizeIs(4));
  EXPECT_EQ(matrix.generation, heart.space.generation());
  const P2pMatrix::Cell& cell = matrix.cells[0];
  EXPECT_EQ(cell.initiator, "B");
  EXPECT_EQ(cell.target, "0000:01:00.0");
  EXPECT_EQ(cell.bar, 2);
  EXPECT_EQ(cell.bar_offset, 0x5000u);
  EXPECT_EQ(cell.range, piece.range);
  EXPECT_EQ(cell.state, CellState::kMapped);
  EXPECT_EQ(cell.detail, "mmap");
  EXPECT_LE(start, cell.since);
  EXPECT_LE(cell.since, before_a);
  EXPECT_EQ(heart.Cells(), (Events{"B 0x3000 mapped mmap", "B 0x9000 mapped mmap",
                                   "A 0x3000 mapped mmap", "A 0x9000 refused no handle"}));
  EXPECT_EQ(matrix.cells[3].target, "0000:02:00.0");
  EXPECT_EQ(matrix.cells[3].bar, 4);
  EXPECT_LE(before_a, matrix.cells[3].since);
}

TEST(AddressSpace, TheMatrixNeverShowsOneUnmapTwice) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000, 0x1000, nullptr, 1)}));
  heart.a.AnswerUnmaps({Answer::kLost});
  heart.recorder.on_event = [&](const std::string&) { EXPECT_THAT(heart.Cells(), SizeIs(2)); };
  heart.Zap({&mapping});
  EXPECT_THAT(heart.Cells(), SizeIs(2));
}

}  // namespace
}  // namespace crossbar::testing
