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

// --- Gone and lost

struct Foreign : ::testing::Test {
  Heart heart;
  std::optional<AddressSpace::DomainHandle> a{heart.Join(heart.a)};
  const AddressSpace::DomainHandle b = heart.Join(heart.b);
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  FakeOwner nic{"nic"};
  Mapping other = heart.Map(Of({Bar(0x9000, 0x1000, &nic)}));
  const Events nothing = heart.recorder.Take();
};

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

TEST_F(Foreign, G7AnUnrevokedCellStaysWhateverIsMappedThereLater) {
  heart.a.AnswerUnmaps({Answer::kLost});
  const auto before = std::chrono::steady_clock::now();
  heart.Zap({&mapping});
  const auto after = std::chrono::steady_clock::now();
  mapping = heart.Map(Of({Bar(0x1000)}));
  heart.Zap({&mapping});
  mapping = heart.Map(Of({Bar(0x1000)}));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x1000 unrevoked the server is lost",
                                   "A 0x9000 unrevoked the server is lost",
                                   "B 0x1000 mapped mmap", "B 0x9000 mapped mmap"}));
  const auto since = heart.space.Peers().cells[0].since;
  EXPECT_LE(before, since);
  EXPECT_LE(since, after);
}

TEST_F(Foreign, G7RamThatItKeepsIsNamedSo) {
  const Mapping ram = heart.Map(Of({Ram(0x20000)}));
  heart.a.AnswerUnmaps({Answer::kLost});
  heart.Zap({&mapping});
  const P2pMatrix::Cell cell = heart.space.Peers().cells[2];
  EXPECT_EQ(cell.target, "guest RAM");
  EXPECT_EQ(cell.state, CellState::kUnrevoked);
}

}  // namespace
}  // namespace crossbar::testing
