#include "base/thread.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <cerrno>

#include "base/failpoint.h"

namespace crossbar {
namespace {

TEST(StartThread, BlocksSignalsInTheThreadAndOnlyThere) {
  bool term = false;
  bool segv = true;
  bool trap = true;
  std::array<char, 16> name{};
  auto thread = StartThread("a name longer than the kernel takes", [&] {
    sigset_t mask;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    term = ::sigismember(&mask, SIGTERM) == 1;
    segv = ::sigismember(&mask, SIGSEGV) == 1;
    trap = ::sigismember(&mask, SIGTRAP) == 1;
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
  });
  ASSERT_TRUE(thread);
  thread->join();
  EXPECT_TRUE(term);
  EXPECT_FALSE(segv);
  EXPECT_FALSE(trap);
  EXPECT_STREQ(name.data(), "a name longer t");
  sigset_t mask;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  EXPECT_EQ(::sigismember(&mask, SIGTERM), 0);
}

TEST(StartThread, SaysThatThereIsNone) {
  ASSERT_TRUE(failpoints::Arm("pthread_create=EAGAIN"));
  const auto thread = StartThread("x", [] {});
  failpoints::Reset();
  ASSERT_FALSE(thread);
  EXPECT_EQ(thread.error().code(), EAGAIN);
}

}  // namespace
}  // namespace crossbar
