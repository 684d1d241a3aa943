#include "base/sys.h"
#include "base/kvm_uapi.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "base/sys_socket.h"

namespace crossbar {
namespace {

TEST(Sys, ErrorsNameTheCallAndItsArguments) {
  const Result<Fd> fd = sys::Open("/nonexistent/file", O_RDONLY);
  ASSERT_FALSE(fd);
  EXPECT_EQ(fd.error().message(), "open /nonexistent/file: No such file or directory");
  EXPECT_EQ(fd.error().code(), ENOENT);
}

TEST(Sys, IoctlErrorsCarryTheDetailOfTheCaller) {
  const Fd event = sys::EventFd().value();
  const Result<int> result = sys::Ioctl(event.get(), SYS_REQUEST(KVM_CREATE_VM), nullptr,
                                        [] { return std::string("type 0"); });
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message(),
            "KVM_CREATE_VM type 0: Inappropriate ioctl for device");
}

TEST(Sys, DescriptorsAreCloseOnExec) {
  const Fd memfd = sys::MemfdCreate("x", 0).value();
  EXPECT_TRUE(::fcntl(memfd.get(), F_GETFD) & FD_CLOEXEC);
  const Fd event = sys::EventFd().value();
  EXPECT_TRUE(::fcntl(event.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(Sys, DrainingAnEmptyNonBlockingEventGivesZero) {
  const Fd event = sys::EventFd(0, O_NONBLOCK).value();
  EXPECT_EQ(sys::DrainEvent(event).value(), 0u);
  EXPECT_TRUE(sys::SignalEvent(event));
  EXPECT_TRUE(sys::SignalEvent(event));
  EXPECT_EQ(sys::DrainEvent(event).value(), 2u);
}

TEST(Sys, WakingAThreadOutlastsOneFailure) {
  const Fd event = sys::EventFd(0, EFD_NONBLOCK).value();
  const auto [ours, theirs] = sys::SocketPair().value();
  ASSERT_TRUE(failpoints::Arm("write=EIO*1"));
  ASSERT_TRUE(failpoints::Arm("shutdown=EIO*1"));
  EXPECT_TRUE(sys::SignalEvent(event));
  EXPECT_TRUE(sys::Shutdown(ours.get()));
  EXPECT_EQ(failpoints::Fired(), 2u);
  failpoints::Reset();
  EXPECT_EQ(sys::DrainEvent(event).value(), 1u);
  EXPECT_TRUE(sys::IsReadable(theirs.get()));
}

// Whoever else has the file fills its counter, and makes it one that waits.
TEST(Sys, SignallingASharedEventNeverWaits) {
  const uint64_t full = ~uint64_t{0} - 1;
  for (const char* aio : {"", "io_submit=ENOSYS"}) {
    const Fd event = sys::EventFd().value();
    ASSERT_TRUE(sys::Write(event.get(), std::as_bytes(std::span(&full, 1))));
    if (*aio != '\0') {
      ASSERT_TRUE(failpoints::Arm(aio));
    }
    std::promise<void> signalled;
    std::thread signals([&] {
      for (int i = 0; i < 100; ++i) sys::SignalSharedEvent(event);
      signalled.set_value();
    });
    EXPECT_EQ(signalled.get_future().wait_for(std::chrono::seconds(3)), std::future_status::ready) << aio;
    failpoints::Reset();
    EXPECT_GE(sys::DrainEvent(event).value(), full) << aio;  // which also ends a wait
    signals.join();
  }
  const Fd event = sys::EventFd().value();
  for (int i = 0; i < 300; ++i) sys::SignalSharedEvent(event);
  EXPECT_EQ(sys::DrainEvent(event).value(), 300u);
}

// Who listens may be busy for ever, and then as many wait as it lets wait.
TEST(Sys, ConnectingWaitsForSoLongOnly) {
  const std::string path = ::testing::TempDir() + "full-socket";
  const Fd listener = sys::ListenUnix(path).value();
  std::vector<Fd> waiting;
  const auto begun = std::chrono::steady_clock::now();
  Result<Fd> last = Fd();
  while (last && waiting.size() < 20) {
    last = sys::ConnectUnix(path, std::chrono::milliseconds(100));
    if (last) waiting.push_back(*std::move(last));
  }
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().code(), EAGAIN);
  EXPECT_NE(last.error().message().find("busy with another client?"), std::string::npos);
  EXPECT_FALSE(sys::ListenUnix(path)) << "it is not served any more?";
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(3));
  EXPECT_TRUE(sys::Accept(listener.get()));
  EXPECT_TRUE(sys::ConnectUnix(path));
  EXPECT_TRUE(sys::Unlink(path));
}

TEST(Sys, ListeningReplacesAStaleSocketAndNoOtherFile) {
  const std::string path = ::testing::TempDir() + "stale-socket";
  (void)sys::ListenUnix(path).value();  // nobody serves it any more
  EXPECT_TRUE(sys::ListenUnix(path));
  EXPECT_TRUE(sys::Unlink(path));
  std::ofstream(path) << "precious";
  const Result<Fd> refused = sys::ListenUnix(path);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), EADDRINUSE);
  EXPECT_NE(refused.error().message().find("is no socket"), std::string::npos);
  EXPECT_EQ(sys::ReadFile(path).value(), "precious");
  EXPECT_EQ(sys::ReadFile(path, 8).value(), "precious");
  EXPECT_EQ(sys::ReadFile(path, 7).error().code(), EFBIG);
  EXPECT_TRUE(sys::Unlink(path));
}

TEST(Sys, AnIoctlCanBeLeftOutAndNothingElse) {
  ASSERT_TRUE(failpoints::Arm("FIONREAD=skip"));
  ASSERT_TRUE(failpoints::Arm("open=skip"));
  int count = 77;
  EXPECT_EQ(sys::TryIoctl(-1, SYS_REQUEST(FIONREAD), &count), 0);
  EXPECT_EQ(count, 77);
  EXPECT_FALSE(sys::Open("/there/is/none", O_RDONLY));
  failpoints::Reset();
  EXPECT_EQ(sys::TryIoctl(-1, SYS_REQUEST(FIONREAD), &count), -EBADF);
}

}  // namespace
}  // namespace crossbar
