// Zap: G2, G5, G7, G10 and G11 of AddressSpace.
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
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// --- G2: DMA in every domain, then slots, then the hardware

TEST(AddressSpace, G2ZapTakesDmaOutOfEveryDomainBeforeAnySlot) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  Mapping first = heart.Map(Of({Bar(0x1000), Bar(0x2000)}, {EventAt(0x8000)}));
  Mapping second = heart.Map(Of({Bar(0x4000)}));
  heart.recorder.Take();
  heart.Zap({&first, &second});
  heart.recorder.Hardware("decode off");
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- start A 0x2000", "dma- start B 0x1000",
                    "dma- start B 0x2000", "dma- start A 0x4000", "dma- start B 0x4000",
                    "dma- done A 0x1000", "dma- done A 0x2000", "dma- done B 0x1000",
                    "dma- done B 0x2000", "dma- done A 0x4000", "dma- done B 0x4000",
                    "slot- 0x4000", "event- 0x8000", "slot- 0x2000", "slot- 0x1000",
                    "hardware decode off"}));
}

TEST(AddressSpace, G2ZapTimesNameTheEndOfEachStage) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  std::chrono::steady_clock::time_point dma_done;
  std::chrono::steady_clock::time_point slot_gone;
  heart.recorder.on_event = [&](const std::string& event) {
    if (event == "dma- done A 0x1000") dma_done = std::chrono::steady_clock::now();
    if (event == "slot- 0x1000") slot_gone = std::chrono::steady_clock::now();
  };
  Mapping* const mappings[] = {&mapping};
  const AddressSpace::Zapped zapped = heart.space.Zap(mappings);
  EXPECT_EQ(zapped.pieces, 1u);
  EXPECT_LE(dma_done, zapped.dma_out);
  EXPECT_LE(zapped.dma_out, slot_gone);
  EXPECT_LE(slot_gone, zapped.slots_out);
}

TEST(AddressSpace, G2UnmapsOfAllDomainsShareOneDeadline) {
  Heart heart(30ms);
  const auto a = heart.Join(heart.a);
  const auto b = heart.Join(heart.b);
  Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}));
  heart.a.late = heart.b.late = Answer::kLost;
  heart.a.Stall();
  heart.b.Stall();
  const auto start = std::chrono::steady_clock::now();
  heart.Zap({&mapping});
  EXPECT_EQ(heart.a.last_deadline(), heart.b.last_deadline());
  EXPECT_GE(heart.a.last_deadline(), start + 30ms);
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

// The deadline is a point in time that is set once: waiting for pins and trying again move it not.
TEST(AddressSpace, G2PinsAndAllTriesOfAllUnmapsShareOneDeadline) {
  Heart heart(1s);
  const auto a = heart.Join(heart.a);
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  std::optional pin(heart.space.TryPin({Gpa(0x1000), 1}));
  heart.a.AnswerUnmaps({Answer::kFailed, Answer::kFailed});
  const auto before = std::chrono::steady_clock::now();
  std::optional<std::chrono::steady_clock::time_point> started;
  heart.recorder.on_event = [&](const std::string& event) {
    if (event == "dma- start A 0x1000" && !started) started = std::chrono::steady_clock::now();
    if (event == "dma- failed A 0x1000") std::this_thread::sleep_for(20ms);
  };
  std::thread forwarder([&] {
    while (heart.Finds(0x1000)) std::this_thread::yield();
    std::this_thread::sleep_for(50ms);
    pin.reset();
  });
  heart.Zap({&mapping});
  forwarder.join();
  EXPECT_GE(std::chrono::steady_clock::now(), before + 90ms);
  ASSERT_TRUE(started);
  EXPECT_GE(heart.a.last_deadline(), before + 1s);
  EXPECT_LE(heart.a.last_deadline(), *started + 1s);
}

// A forward that hangs costs the zap its deadline, but no server that answered meanwhile its life.
TEST(AddressSpace, G2AReplyThatArrivesWhileAPinIsStuckCounts) {
  Heart heart(100ms);
  const auto a = heart.Join(heart.a);
  heart.a.reply_time = 20ms;
  heart.a.late = Answer::kGone;
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  Mapping other = heart.Map(Of({Bar(0x9000)}));
  const auto pin = heart.space.TryPin({Gpa(0x1000), 1});
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, ElementsAre("forwarded DMA does not end"));
  EXPECT_THAT(heart.recorder.Take(), Contains("dma- done A 0x1000"));
  EXPECT_EQ(heart.Cells(), (Events{"A 0x9000 mapped mmap"}));
  heart.Zap({&other});
}

// --- G5: an unmap must succeed and return the size we mapped

struct G5 : ::testing::Test {
  Heart heart;
  const AddressSpace::DomainHandle a = heart.Join(heart.a);
  const AddressSpace::DomainHandle b = heart.Join(heart.b);
  Mapping mapping = heart.Map(Of({Bar(0x1000), Bar(0x2000)}, {EventAt(0x8000)}));
  const Events nothing = heart.recorder.Take();
};

TEST_F(G5, AFailedUnmapIsTriedAgainAloneBeforeAnySlotGoes) {
  heart.a.AnswerUnmaps({Answer::kDone, Answer::kFailed, Answer::kFailed});
  heart.Zap({&mapping});
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- start A 0x2000", "dma- start B 0x1000",
                    "dma- start B 0x2000", "dma- done A 0x1000", "dma- failed A 0x2000",
                    "dma- done B 0x1000", "dma- done B 0x2000", "dma- start A 0x2000",
                    "dma- failed A 0x2000", "dma- start A 0x2000", "dma- done A 0x2000",
                    "event- 0x8000", "slot- 0x2000", "slot- 0x1000"}));
}

TEST_F(G5, AShortUnmapIsAFailure) {
  heart.b.AnswerUnmaps({Answer::kShort});
  heart.Zap({&mapping});
  EXPECT_THAT(heart.recorder.Take(), Contains("dma- start B 0x1000").Times(2));
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

// A retry is for the whole range, and finds unmapped what the try before did: all of them together
// have to add up.
TEST(AddressSpace, G5ShortUnmapsThatAddUpToTheSizeAreASuccess) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  Mapping mapping = heart.Map(Of({Bar(0x4000, 0x4000)}));
  heart.a.AnswerUnmaps({Answer::kShort, Answer::kFailed});
  heart.Zap({&mapping});
  EXPECT_THAT(heart.recorder.Take(), Contains("dma- start A 0x4000").Times(3));
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

TEST_F(G5, AnUnmapThatKeepsFailingIsOneEmergencyBetweenDmaAndSlots) {
  heart.a.AnswerUnmaps({Answer::kShort, Answer::kFailed, Answer::kFailed, Answer::kShort,
                        Answer::kFailed, Answer::kShort});
  heart.recorder.on_event = [&](const std::string& event) {
    if (event == "unsafe") heart.recorder.Hardware("bus mastering off");
  };
  heart.Zap({&mapping});
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- start A 0x2000", "dma- start B 0x1000",
                    "dma- start B 0x2000", "dma- short A 0x1000", "dma- failed A 0x2000",
                    "dma- done B 0x1000", "dma- done B 0x2000",                        // first try
                    "dma- start A 0x1000", "dma- start A 0x2000", "dma- failed A 0x1000",
                    "dma- short A 0x2000",                                             // second
                    "dma- start A 0x1000", "dma- start A 0x2000", "dma- failed A 0x1000",
                    "dma- short A 0x2000",                                             // third
                    "hardware bus mastering off", "unsafe",                            //
                    "event- 0x8000", "slot- 0x2000", "slot- 0x1000"}));
  ASSERT_THAT(heart.unsafe, SizeIs(1));
  EXPECT_THAT(heart.unsafe[0], HasSubstr("A does not unmap 0x"));
  EXPECT_FALSE(heart.Finds(0x1000));
  EXPECT_FALSE(mapping.live());
  heart.a.Drop();
}

TEST_F(G5, AShortUnmapSaysHowMuchWasUnmapped) {
  heart.a.AnswerUnmaps({Answer::kShort, Answer::kDone, Answer::kShort, Answer::kShort});
  heart.Zap({&mapping});
  ASSERT_THAT(heart.unsafe, SizeIs(1));
  EXPECT_EQ(heart.unsafe[0], "A does not unmap 0x1000-0x1fff: 0x0 of 0x1000 bytes");
  heart.a.Drop();
}

// The domain that failed first is gone by the last try: nothing is unsafe about it.
TEST_F(G5, ADomainThatIsGoneOnTheLastTryIsNoEmergency) {
  heart.a.AnswerUnmaps({Answer::kFailed, Answer::kFailed, Answer::kFailed, Answer::kFailed,
                        Answer::kFailed, Answer::kGone});
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_THAT(heart.recorder.Take(), Contains("dma- gone A 0x2000"));
}

TEST_F(G5, ASlotRemovalThatFailsIsTriedAgain) {
  heart.recorder.Fail("slot-", 1, 2);
  heart.Zap({&mapping});
  EXPECT_EQ(heart.recorder.fired(), 2u);
  EXPECT_THAT(heart.recorder.Take(), Contains("slot- 0x2000 failed").Times(2));
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_THAT(heart.slots.Slots(), IsEmpty());
}

TEST_F(G5, AnEventRemovalThatFailsIsTriedAgain) {
  heart.recorder.Fail("event-", 1, 2);
  heart.Zap({&mapping});
  EXPECT_EQ(heart.recorder.fired(), 2u);
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_THAT(heart.slots.EventAddresses(), IsEmpty());
}

TEST_F(G5, ASlotThatCannotBeRemovedIsAnEmergencyAndTheOthersGo) {
  heart.recorder.Fail("slot-", 1, 3);
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, ElementsAre("injected"));
  EXPECT_THAT(heart.slots.Slots(), SizeIs(1));
  EXPECT_FALSE(heart.Finds(0x2000));
  heart.slots.Drop();
}

// --- G7: after the ack, nothing

struct G7 : ::testing::Test {
  Heart heart{20s};
  const AddressSpace::DomainHandle a = heart.Join(heart.a);
  const AddressSpace::DomainHandle b = heart.Join(heart.b);
  Mapping mapping = heart.Map(Of({Bar(0x1000)}));
  const Mapping other = heart.Map(Of({Bar(0x9000)}));
  const GuestRange page = {Gpa(0x1000), kPageSize};
  const Events nothing = heart.recorder.Take();
};

TEST_F(G7, FromTheStartOfAZapThePieceIsFoundByNobodyAndTakesNoPin) {
  int seen = 0;
  heart.recorder.on_event = [&](const std::string&) {
    ++seen;
    EXPECT_FALSE(mapping.live());
    EXPECT_FALSE(heart.Finds(0x1000));
    EXPECT_FALSE(heart.space.Find(Hva(kHost + 0x1000)));
    EXPECT_FALSE(heart.space.TryPin(page));
    EXPECT_TRUE(heart.Finds(0x9000));
  };
  heart.Zap({&mapping});
  EXPECT_EQ(seen, 5);
  heart.recorder.Hardware("decode off");
  EXPECT_EQ(seen, 6);
  heart.recorder.on_event = nullptr;
  EXPECT_EQ(heart.Cells(), (Events{"A 0x9000 mapped mmap", "B 0x9000 mapped mmap"}));
}

TEST_F(G7, APinTakenBeforeDelaysTheZapAndOneTakenDuringFailsAtOnce) {
  auto pin = heart.space.TryPin(page);
  ASSERT_TRUE(pin);
  auto zap = std::async(std::launch::async, [&] { heart.Zap({&mapping}); });
  while (heart.Finds(0x1000)) std::this_thread::yield();
  EXPECT_FALSE(heart.space.TryPin(page));
  EXPECT_EQ(zap.wait_for(20ms), std::future_status::timeout);
  EXPECT_EQ(heart.recorder.Take(), (Events{"dma- start A 0x1000", "dma- start B 0x1000"}))
      << "servers work while forwards end, and no slot goes before";
  pin.reset();
  zap.get();
  EXPECT_THAT(heart.unsafe, IsEmpty());
  EXPECT_THAT(heart.recorder.Take(), SizeIs(3));
}

TEST_F(G7, APinOnAnotherPieceDelaysNothing) {
  const auto pin = heart.space.TryPin({Gpa(0x9800), 0x800});
  ASSERT_TRUE(pin);
  EXPECT_EQ(pin->place().backing.host, Hva(kHost + 0x9800));
  heart.Zap({&mapping});
  EXPECT_THAT(heart.unsafe, IsEmpty());
}

TEST(AddressSpace, G7APinThatOutlastsTheDeadlineIsAnEmergencyAndKeepsThePlace) {
  Heart heart(10ms);
  const auto a = heart.Join(heart.a);
  auto owner = std::make_unique<FakeOwner>("gone");
  Mapping mapping = heart.Map(Of({Bar(0x1000, 0x1000, owner.get()), Bar(0x2000)}));
  heart.a.refuse = [](GuestRange, const Backing&) { return "full"; };
  Mapping refused = heart.Map(Of({Bar(0x5000, 0x1000, owner.get())}));
  heart.a.refuse = nullptr;
  auto pin = heart.space.TryPin({Gpa(0x1000), 1});
  auto pin_of_refused = heart.space.TryPin({Gpa(0x5000), 1});
  heart.recorder.Take();
  heart.Zap({&mapping, &refused});
  owner.reset();
  EXPECT_THAT(heart.unsafe, Contains("forwarded DMA does not end"));
  EXPECT_THAT(heart.slots.Slots(), IsEmpty());
  EXPECT_THAT(heart.a.Mapped(), IsEmpty());
  // What is only pinned is no piece: nobody finds it, joins with it, or can take its place.
  EXPECT_THAT(heart.Cells(), IsEmpty());
  const auto b = heart.Join(heart.b);
  EXPECT_THAT(heart.b.Mapped(), IsEmpty());
  EXPECT_FALSE(heart.Finds(0x1000));
  EXPECT_EQ(heart.space.Map(Of({Bar(0x1000)})).error().code(), EEXIST);
  Piece moved = Bar(0x7000);
  moved.backing.host = Hva(kHost + 0x1000);
  const Mapping elsewhere = heart.Map(Of({moved}));
  EXPECT_EQ(heart.space.Find(Hva(kHost + 0x1000))->range, moved.range);
  pin.reset();
  pin_of_refused.reset();
  EXPECT_EQ(heart.space.Find(Hva(kHost + 0x1000))->range, moved.range);
  const Mapping again = heart.Map(Of({Bar(0x1000), Bar(0x5000)}));
  EXPECT_TRUE(again.live());
}

// --- G10: no lookup waits for a zap

template <typename Lookups>
void ExpectAtOnce(Lookups lookups) {
  auto looked = std::async(std::launch::async, lookups);
  EXPECT_EQ(looked.wait_for(5s), std::future_status::ready) << "a lookup waits for the zap";
}

TEST_F(G7, G10NoLookupWaitsForAZapThatIsStuckInAnUnmap) {
  heart.a.Stall();
  auto zap = std::async(std::launch::async, [&] { heart.Zap({&mapping}); });
  heart.a.WaitUntilStalled();
  std::thread resume([&] {  // should a lookup wait after all
    zap.wait_for(6s);
    heart.a.Resume();
  });
  ExpectAtOnce([&] {
    EXPECT_FALSE(heart.Finds(0x1000));
    EXPECT_TRUE(heart.Finds(0x9000));
    EXPECT_TRUE(heart.space.Find(Hva(kHost + 0x9000)));
    EXPECT_FALSE(heart.space.TryPin(page));
    EXPECT_TRUE(heart.space.TryPin({Gpa(0x9000), 1}));
    EXPECT_THAT(heart.Cells(), SizeIs(4)) << "not unmapped yet";
    EXPECT_EQ(heart.space.Peers().generation, heart.space.generation());
    EXPECT_TRUE(other.live());
    EXPECT_EQ(zap.wait_for(0s), std::future_status::timeout) << "the zap was not stuck at all";
  });
  heart.a.Resume();
  resume.join();
  zap.get();
  EXPECT_THAT(heart.Cells(), SizeIs(2));
}

TEST_F(G7, G10NoLookupWaitsForAZapThatWaitsForAPin) {
  auto pin = heart.space.TryPin(page);
  auto zap = std::async(std::launch::async, [&] { heart.Zap({&mapping}); });
  ExpectAtOnce([&] {
    while (heart.Finds(0x1000)) std::this_thread::yield();
    EXPECT_TRUE(heart.space.TryPin({Gpa(0x9000), 1}));
    EXPECT_THAT(heart.Cells(), SizeIs(4));
    EXPECT_EQ(zap.wait_for(0s), std::future_status::timeout) << "the zap did not wait at all";
  });
  pin.reset();
  zap.get();
}

// --- G11: close last

// As devices/ builds a function: what is declared last goes first.
struct Device {
  ~Device() { EXPECT_FALSE(bars[0].live()) << "closing"; }
  struct File {
    Recorder& recorder;
    ~File() { recorder.Hardware("close"); }
  };
  File file;
  std::array<Mapping, 2> bars;
};

TEST(AddressSpace, G11ADevicesBarsLeaveEveryDomainBeforeItsFdCloses) {
  Heart heart;
  const auto a = heart.Join(heart.a);
  auto b = heart.Join(heart.b);
  {
    Device device{{heart.recorder}, {heart.Map(Of({Bar(0x1000)})), heart.Map(Of({Bar(0x2000)}))}};
    heart.recorder.Take();
    heart.Zap({&device.bars[0]});
  }
  EXPECT_EQ(heart.recorder.Take(),
            (Events{"dma- start A 0x1000", "dma- start B 0x1000", "dma- done A 0x1000",
                    "dma- done B 0x1000", "slot- 0x1000", "dma- start A 0x2000",
                    "dma- start B 0x2000", "dma- done A 0x2000", "dma- done B 0x2000",
                    "slot- 0x2000", "hardware close"}));
}

}  // namespace
}  // namespace crossbar::testing
