#include "vmm/event_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>
#include <vector>

#include "base/sys.h"

namespace crossbar {
namespace {

using ::testing::ElementsAre;

class EventLoopTest : public ::testing::Test {
 protected:
  Fd Event() { return sys::EventFd().value(); }
  static void Raise(const Fd& event) { ASSERT_TRUE(sys::SignalEvent(event)); }
  static void Drain(const Fd& event) { ASSERT_TRUE(sys::DrainEvent(event)); }

  EventLoop loop_ = EventLoop::Create().value();
  std::vector<int> ran_;
};

TEST_F(EventLoopTest, RunsHandlersOfReadyDescriptorsUntilOneQuits) {
  const Fd first = Event();
  const Fd second = Event();
  ASSERT_TRUE(loop_.Add(first.get(), [&]() -> Result<> {
    ran_.push_back(1);
    Drain(first);
    Raise(second);
    return {};
  }));
  ASSERT_TRUE(loop_.Add(second.get(), [&]() -> Result<> {
    ran_.push_back(2);
    loop_.Quit();
    return {};
  }));
  Raise(first);
  ASSERT_TRUE(loop_.Run());
  EXPECT_THAT(ran_, ElementsAre(1, 2));
}

TEST_F(EventLoopTest, CanRunAgainAfterQuit) {
  const Fd event = Event();
  ASSERT_TRUE(loop_.Add(event.get(), [&]() -> Result<> {
    ran_.push_back(1);
    loop_.Quit();
    return {};
  }));
  Raise(event);  // never drained, so ready both times
  ASSERT_TRUE(loop_.Run());
  ASSERT_TRUE(loop_.Run());
  EXPECT_THAT(ran_, ElementsAre(1, 1));
}

TEST_F(EventLoopTest, PassesAHandlersErrorOn) {
  const Fd event = Event();
  ASSERT_TRUE(loop_.Add(event.get(), []() -> Result<> { return Fail("it broke"); }));
  Raise(event);
  const Result<> run = loop_.Run();
  ASSERT_FALSE(run);
  EXPECT_EQ(run.error().message(), "it broke");
}

TEST_F(EventLoopTest, DoesNotRunAHandlerThatAnEarlierOneOfTheRoundRemoved) {
  const std::array<Fd, 2> events = {Event(), Event()};
  const Fd end = Event();
  ASSERT_TRUE(loop_.Add(end.get(), [&]() -> Result<> {
    loop_.Quit();
    return {};
  }));
  for (const size_t self : {size_t{0}, size_t{1}}) {
    ASSERT_TRUE(loop_.Add(events[self].get(), [&, self]() -> Result<> {
      ran_.push_back(static_cast<int>(self));
      loop_.Remove(events[1 - self].get());
      Drain(events[self]);
      Raise(end);
      return {};
    }));
    Raise(events[self]);
  }
  ASSERT_TRUE(loop_.Run());
  EXPECT_EQ(ran_.size(), 1u);
}

TEST_F(EventLoopTest, LetsAHandlerRemoveItself) {
  const Fd event = Event();
  const Fd end = Event();
  ASSERT_TRUE(loop_.Add(event.get(), [&, kept = std::string(100, 'x')]() -> Result<> {
    loop_.Remove(event.get());
    ran_.push_back(static_cast<int>(kept.size()));  // what it captured still lives
    Raise(end);
    return {};
  }));
  ASSERT_TRUE(loop_.Add(end.get(), [&]() -> Result<> {
    loop_.Quit();
    return {};
  }));
  Raise(event);
  ASSERT_TRUE(loop_.Run());
  EXPECT_THAT(ran_, ElementsAre(100));
  loop_.Remove(event.get());  // not there any more: nothing happens
}

TEST_F(EventLoopTest, SaysWhyADescriptorCannotBeWatched) {
  const Fd regular = sys::Open("/etc/passwd", O_RDONLY).value();
  const Fd event = Event();
  const auto nothing = []() -> Result<> { return {}; };
  EXPECT_EQ(loop_.Add(regular.get(), nothing).error().code(), EPERM);
  ASSERT_TRUE(loop_.Add(event.get(), nothing));
  EXPECT_EQ(loop_.Add(event.get(), nothing).error().code(), EEXIST);
  EXPECT_EQ(loop_.Add(-1, nothing).error().code(), EBADF);
}

TEST_F(EventLoopTest, RunsTheHandlerOfAPipeThatHungUp) {
  std::array<int, 2> ends;
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const Fd reader(ends[0]);
  ::close(ends[1]);
  ASSERT_TRUE(loop_.Add(reader.get(), [&]() -> Result<> {
    ran_.push_back(1);
    loop_.Quit();
    return {};
  }));
  ASSERT_TRUE(loop_.Run());
  EXPECT_THAT(ran_, ElementsAre(1));
}

}  // namespace
}  // namespace crossbar
