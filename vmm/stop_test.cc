#include "vmm/stop.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <set>
#include <thread>
#include <vector>

namespace crossbar {
namespace {

using Reason = StopRequest::Reason;

bool Readable(const Fd& fd) {
  pollfd poll{fd.get(), POLLIN, 0};
  return ::poll(&poll, 1, 0) == 1;
}

TEST(StopSignal, IsRaisedByTheFirstRequestAndKeepsIt) {
  StopSignal stop = StopSignal::Create().value();
  EXPECT_FALSE(stop.requested());
  EXPECT_FALSE(Readable(stop.event()));
  stop.Request({Reason::kDebugExit, 7, "first"});
  stop.Request(Reason::kGuestCrash, ExitStatus::kGuestCrash, "second");
  EXPECT_TRUE(stop.requested());
  EXPECT_TRUE(Readable(stop.event()));
  const StopRequest taken = stop.Take();
  EXPECT_EQ(taken.reason, Reason::kDebugExit);
  EXPECT_EQ(taken.status, 7);
  EXPECT_EQ(taken.detail, "first");
}

TEST(StopSignal, LetsAPersonStopAGuestThatIsAboutToReboot) {
  StopSignal stop = StopSignal::Create().value();
  stop.Request(Reason::kReboot, ExitStatus::kPowerOff, "reset");
  stop.Request(Reason::kOutside, ExitStatus::kStopped, "SIGTERM");
  stop.Request(Reason::kReboot, ExitStatus::kPowerOff, "another reset");
  EXPECT_EQ(stop.Take().detail, "SIGTERM");
  EXPECT_FALSE(Readable(stop.event()));
}

TEST(StopSignal, LetsNothingHideThatMemoryIsUnsafe) {
  StopSignal stop = StopSignal::Create().value();
  stop.Request(Reason::kOutside, ExitStatus::kStopped, "SIGTERM");
  stop.Request(Reason::kUnsafe, ExitStatus::kUnsafe, "unsafe");
  stop.Request(Reason::kHostError, ExitStatus::kHostError, "error");
  EXPECT_EQ(stop.Take().detail, "unsafe");
}

TEST(StopSignal, CanBeRaisedAgainOnceTaken) {
  StopSignal stop = StopSignal::Create().value();
  stop.Request(Reason::kReboot, ExitStatus::kPowerOff, "one");
  stop.Take();
  EXPECT_FALSE(stop.requested());
  EXPECT_FALSE(Readable(stop.event()));
  stop.Request(Reason::kPowerOff, ExitStatus::kPowerOff, "two");
  EXPECT_TRUE(Readable(stop.event()));
  EXPECT_EQ(stop.Take().detail, "two");
}

TEST(StopSignal, KeepsOneOfManyRequestsMadeAtOnce) {
  StopSignal stop = StopSignal::Create().value();
  for (int round = 0; round < 100; ++round) {
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < 4; ++i)
        threads.emplace_back([&, i] { stop.Request({Reason::kDebugExit, i, std::to_string(i)}); });
    }
    const StopRequest taken = stop.Take();
    EXPECT_EQ(taken.detail, std::to_string(taken.status)) << "no mix of two";
    EXPECT_FALSE(Readable(stop.event()));
  }
}

TEST(StopSignal, HasANameForEveryReason) {
  std::set<std::string> names;
  for (const Reason reason : {Reason::kPowerOff, Reason::kDebugExit, Reason::kReboot, Reason::kGuestCrash,
                              Reason::kHostError, Reason::kUnsafe, Reason::kOutside})
    names.insert(ReasonName(reason));
  EXPECT_EQ(names.size(), 7u);
  EXPECT_EQ(names.count("unknown"), 0u);
}

TEST(StopSignalDeathTest, IsNotTakenWithoutARequest) {
  StopSignal stop = StopSignal::Create().value();
  EXPECT_DEATH(stop.Take(), "CHECK");
}

}  // namespace
}  // namespace crossbar
