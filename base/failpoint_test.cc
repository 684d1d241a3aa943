#include "base/failpoint.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>

#include "base/sys.h"

namespace crossbar {
namespace {

class Failpoint : public ::testing::Test {
 protected:
  void TearDown() override { failpoints::Reset(); }
};

TEST_F(Failpoint, FailsExactlyTheNthCall) {
  ASSERT_TRUE(failpoints::Arm("eventfd#2=EMFILE*1"));
  EXPECT_TRUE(sys::EventFd());
  const Result<Fd> second = sys::EventFd();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), EMFILE);
  EXPECT_EQ(second.error().message(), "eventfd: Too many open files");
  EXPECT_TRUE(sys::EventFd());
  EXPECT_EQ(failpoints::Fired(), 1u);
}

TEST_F(Failpoint, StarFailsEveryCallWhateverItsName) {
  ASSERT_TRUE(failpoints::Arm("*=5"));
  EXPECT_EQ(sys::EventFd().error().code(), EIO);
  EXPECT_EQ(sys::MemfdCreate("x", 0).error().code(), EIO);
}

TEST_F(Failpoint, DelayWaitsAndGoesOn) {
  ASSERT_TRUE(failpoints::Arm("eventfd=delay(20000)"));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(sys::EventFd());
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(20));
}

TEST_F(Failpoint, CensusCountsCallsByName) {
  failpoints::StartCensus();
  EXPECT_TRUE(sys::EventFd());
  EXPECT_TRUE(sys::EventFd());
  EXPECT_TRUE(sys::MemfdCreate("x", 0));
  const auto census = failpoints::Census();
  EXPECT_EQ(census.at("eventfd"), 2u);
  EXPECT_EQ(census.at("memfd_create"), 1u);
}

TEST_F(Failpoint, RefusesRulesItDoesNotUnderstand) {
  for (const char* rule : {"", "open", "=EIO", "open=", "open=EWHAT", "open#0=EIO", "open#x=EIO",
                           "open=EIO*x", "open=0", "open=999", "open=delay(x)"}) {
    EXPECT_FALSE(failpoints::Arm(rule)) << rule;
  }
  EXPECT_TRUE(sys::EventFd());
}

TEST_F(Failpoint, TellsWhichRulesNeverFired) {
  ASSERT_TRUE(failpoints::Arm("eventfd#2=EMFILE"));
  ASSERT_TRUE(failpoints::Arm("evenfd=EMFILE"));
  ASSERT_TRUE(failpoints::Arm("*#1=delay(1)"));
  EXPECT_TRUE(sys::EventFd());
  const auto idle = failpoints::IdleRules();
  ASSERT_EQ(idle.size(), 2u);
  EXPECT_EQ(idle[0].text, "eventfd#2=EMFILE");
  EXPECT_EQ(idle[0].matched, 1u);
  EXPECT_EQ(idle[1].text, "evenfd=EMFILE");
  EXPECT_EQ(idle[1].matched, 0u);
}

TEST_F(Failpoint, ChecksARuleWithoutArmingIt) {
  EXPECT_TRUE(failpoints::Check("eventfd=EMFILE"));
  EXPECT_FALSE(failpoints::Check("eventfd=EBOGUS"));
  EXPECT_TRUE(sys::EventFd());
}

}  // namespace
}  // namespace crossbar
