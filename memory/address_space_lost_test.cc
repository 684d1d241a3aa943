// Servers that do not do as they are told: deadlines of maps, domains that are lost, and what the
// matrix keeps of them (G7).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "memory/testing/heart.h"

namespace crossbar::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// --- A map has a deadline

struct StalledMap : ::testing::Test {
  Heart heart{20s, 50ms};
  AddressSpace::DomainHandle a = heart.Join(heart.a);
  const AddressSpace::DomainHandle b = heart.Join(heart.b);
};

TEST_F(StalledMap, G7AServerOfOursThatDoesNotAnswerIsGoneAndTheMapStands) {
  heart.a.late = Answer::kGone;
  heart.a.StallMaps();
  const auto before = std::chrono::steady_clock::now();
  const Mapping mapping = heart.Map(Of({Ram(0x1000), Bar(0x2000)}));
  EXPECT_GE(heart.a.last_map_deadline(), before + 50ms);
  EXPECT_TRUE(mapping.live());
  EXPECT_EQ(heart.Cells(), (Events{"B 0x2000 mapped mmap"}));
  EXPECT_THAT(heart.b.Mapped(), SizeIs(2));
}

TEST_F(StalledMap, G7AForeignServerThatDoesNotAnswerMayHaveMappedWhatItWasTold) {
  const Mapping before = heart.Map(Of({Bar(0x8000, 0x1000, nullptr, 1)}));
  heart.a.late = Answer::kLost;
  heart.a.StallMaps();
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  EXPECT_TRUE(mapping.live());
  const Mapping later = heart.Map(Of({Bar(0x3000, 0x1000)}));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 unrevoked the server is lost",
                                   "A 0x8000 unrevoked the server is lost",
                                   "B 0x1000 mapped mmap", "B 0x2000 mapped mmap",
                                   "B 0x3000 mapped mmap", "B 0x8000 mapped mmap"}));
}

// Time that one server wastes is not the next one's.
TEST_F(StalledMap, EachDomainHasItsOwnTimeForAPlacement) {
  heart.a.late = Answer::kGone;
  heart.a.StallMaps();
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  EXPECT_GE(heart.b.last_map_deadline(), heart.a.last_map_deadline() + 50ms);
}

TEST_F(StalledMap, AllMapsOfOneDomainShareOneDeadline) {
  std::vector<DmaDomain::Deadline> deadlines;
  heart.recorder.on_event = [&](const std::string& event) {
    if (event.starts_with("dma+ A")) deadlines.push_back(heart.a.last_map_deadline());
    std::this_thread::sleep_for(2ms);
  };
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  ASSERT_THAT(deadlines, SizeIs(2));
  EXPECT_EQ(deadlines[0], deadlines[1]);
}

TEST_F(StalledMap, AServerThatDoesNotAnswerWhenItJoinsDoesNotJoin) {
  const Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  RecordingDomain server(heart.recorder, "server");
  server.late = Answer::kLost;
  server.StallMaps();
  EXPECT_FALSE(heart.space.AddDomain(server));
  EXPECT_THAT(heart.Cells(), Contains("server 0x1000 unrevoked the server is lost"));
}

// A zap that comes meanwhile waits for the map's deadline, and no longer.
TEST_F(StalledMap, G2AHungServerHoldsUpAZapForTheDeadlineOnly) {
  Mapping other = heart.Map(Of({Bar(0x9000)}));
  heart.a.late = Answer::kGone;
  heart.a.StallMaps();
  auto map = std::async(std::launch::async, [&] { return heart.Map(Of({Bar(0x1000)})); });
  heart.a.WaitUntilStalled();
  auto zap = std::async(std::launch::async, [&] { heart.Zap({&other}); });
  EXPECT_EQ(zap.wait_for(10s), std::future_status::ready);
  heart.a.Resume();
  EXPECT_TRUE(map.get().live());
}

// --- Unrevoked

struct Foreign : ::testing::Test {
  Heart heart;
  std::optional<AddressSpace::DomainHandle> a{heart.Join(heart.a)};
  const AddressSpace::DomainHandle b = heart.Join(heart.b);
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  FakeOwner nic{"nic"};
  Mapping other = heart.Map(Of({Bar(0x9000, 0x1000, &nic)}));
  const Events nothing = heart.recorder.Take();
};

TEST_F(Foreign, G7WhatAForeignServerKeepsIsUnrevokedInTheMatrixAndNoEmergency) {
  heart.a.AnswerUnmaps({Answer::kUnrevoked});
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- start B 0x1000", "dma- unrevoked A 0x1000",
                    "dma- done B 0x1000", "slot- 0x1000"}));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 unrevoked the server did not give it back",
                                   "A 0x9000 mapped mmap", "B 0x9000 mapped mmap"}));
  EXPECT_FALSE(heart.Finds(0x1000));
}

TEST_F(Foreign, G7AnUnrevokedCellStaysWhateverIsMappedThereLaterAndIsThereOnce) {
  const auto before = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point first;
  for (int i = 0; i < 2; ++i) {
    heart.a.AnswerUnmaps({Answer::kUnrevoked});
    heart.Zap({&mapping});
    if (i == 0) first = std::chrono::steady_clock::now();
    mapping = heart.Map(Of({Bar(0x1000)}));
  }
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 mapped mmap",
                                   "A 0x1000 unrevoked the server did not give it back",
                                   "A 0x9000 mapped mmap", "B 0x1000 mapped mmap",
                                   "B 0x9000 mapped mmap"}));
  const auto since = heart.space.Peers().cells[1].since;
  EXPECT_LE(before, since);
  EXPECT_LE(since, first) << "since it was first not given back";
}

// A guest that moves its BAR about, with a server that gives nothing back, costs no memory.
TEST_F(Foreign, G12ABarThatIsNotGivenBackAtManyPlacesIsOneCell) {
  for (uint64_t i = 0; i < 100; ++i) {
    heart.a.AnswerUnmaps({Answer::kUnrevoked});
    heart.Zap({&mapping});
    mapping = heart.Map(Of({Bar(0x10'0000 + i * 0x1000)}));
  }
  EXPECT_THAT(heart.Cells(), SizeIs(5));
  EXPECT_THAT(heart.Cells(), Contains("A 0x162000 unrevoked the server did not give it back, here "
                                      "and elsewhere"));
}

TEST_F(Foreign, G7ALateReplyTakesTheCellBack) {
  heart.a.AnswerUnmaps({Answer::kUnrevoked});
  heart.Zap({&mapping});
  const uint64_t generation = heart.space.generation();
  a->NoteRevoked({Gpa(0x9000), 0x1000});
  EXPECT_THAT(heart.Cells(), SizeIs(3)) << "that is mapped";
  a->NoteRevoked({Gpa(0x1000), 0x1000});
  EXPECT_EQ(heart.Cells(), (Events{"A 0x9000 mapped mmap", "B 0x9000 mapped mmap"}));
  EXPECT_GT(heart.space.generation(), generation);
}

TEST_F(Foreign, G7ALateReplyForOnePlaceOfSeveralProvesNothing) {
  for (const uint64_t next : {0x3000u, 0x4000u}) {
    heart.a.AnswerUnmaps({Answer::kUnrevoked});
    heart.Zap({&mapping});
    mapping = heart.Map(Of({Bar(next)}));
  }
  a->NoteRevoked({Gpa(0x3000), 0x1000});
  EXPECT_THAT(heart.Cells(), Contains(::testing::HasSubstr("unrevoked")));
}

TEST_F(Foreign, G7WhatItKeepsOutlivesItsMembershipUnderItsName) {
  heart.a.AnswerUnmaps({Answer::kUnrevoked});
  heart.Zap({&mapping});
  a.reset();
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 unrevoked the server did not give it back",
                                   "B 0x9000 mapped mmap"}));
}

TEST_F(Foreign, G7RamThatItKeepsIsOneCell) {
  {
    const Mapping ram = heart.Map(Of({Ram(0x10000), Ram(0x20000)}));
    heart.a.AnswerUnmaps({Answer::kUnrevoked, Answer::kUnrevoked});
  }
  const P2pMatrix::Cell cell = heart.space.Peers().cells[2];
  EXPECT_EQ(cell.target, "guest RAM");
  EXPECT_EQ(cell.state, CellState::kUnrevoked);
  EXPECT_THAT(heart.Cells(), SizeIs(5));
}

// --- Gone and lost

TEST_F(Foreign, G7ADomainThatIsGoneReachesNothingAndCostsNoMoreCalls) {
  heart.a.AnswerUnmaps({Answer::kGone});
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_EQ(heart.Cells(), (Events{"B 0x9000 mapped mmap"}));
  heart.recorder.Take();
  mapping = heart.Map(Of({Bar(0x1000)}));
  EXPECT_EQ(heart.recorder.Take(), (Events{"slot+ 0x1000", "dma+ B 0x1000"}));
}

TEST_F(Foreign, G7ADomainThatIsLostInAZapMayReachAllItHadAndCostsNoMoreCalls) {
  const Mapping ram = heart.Map(Of({Ram(0x10000), Ram(0x20000)}));
  heart.a.AnswerUnmaps({Answer::kLost});
  heart.recorder.Take();
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- start B 0x1000", "dma- lost A 0x1000",
                    "dma- done B 0x1000", "slot- 0x1000"}));
  const Events kept = {"A 0x1000 unrevoked the server is lost",
                       "A 0x9000 unrevoked the server is lost",
                       "A 0x20000 unrevoked the server is lost, here and elsewhere",
                       "B 0x9000 mapped mmap"};
  EXPECT_EQ(heart.Cells(), kept);
  heart.Zap({&other});
  a.reset();
  EXPECT_EQ(heart.recorder.Take(), (Events{"dma- start B 0x9000", "dma- done B 0x9000",
                                           "slot- 0x9000"}));
  EXPECT_EQ(heart.Cells(), Events(kept.begin(), kept.end() - 1))
      << "neither the piece's end nor the domain's makes the server let go";
}

TEST_F(Foreign, G7WhatTheOwnerSaysIsLostIsKeptUntilItIsGone) {
  heart.a.Lose();
  a->NoteEnd();
  a->NoteEnd();
  EXPECT_THAT(heart.Cells(), ElementsAre("A 0x1000 unrevoked the server is lost",
                                         "A 0x9000 unrevoked the server is lost",
                                         "B 0x1000 mapped mmap", "B 0x9000 mapped mmap"));
  heart.a.Die();
  a->NoteEnd();
  EXPECT_THAT(heart.Cells(), ElementsAre("B 0x1000 mapped mmap", "B 0x9000 mapped mmap"));
  EXPECT_THAT(heart.recorder.Take(), IsEmpty());
}

TEST_F(Foreign, G7WhatItKeptBeforeItWasGoneItCanNoLongerUse) {
  heart.a.AnswerUnmaps({Answer::kUnrevoked});
  heart.Zap({&mapping});
  heart.a.Die();
  a->NoteEnd();
  EXPECT_EQ(heart.Cells(), (Events{"B 0x9000 mapped mmap"}));
}

TEST_F(Foreign, NoteEndOfADomainThatServesIsAMistake) {
  EXPECT_DEATH(a->NoteEnd(), "A serves");
}

}  // namespace
}  // namespace crossbar::testing
