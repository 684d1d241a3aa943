// The vfio-user client where a system call fails: whichever it is, an error and nothing left behind.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/served.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::IsEmpty;

// Each call of a name in turn fails, on either side, while a client is made and lives.
class VfioUserSweep : public ::testing::TestWithParam<const char*> {};

// Whether there was an n-th call, which then failed.
bool LiveWhereTheCallFails(const char* call, int n, bool twin) {
  constexpr Connection::Limits kQuick{milliseconds(60), milliseconds(60), milliseconds(60)};
  ClientMachine machine(milliseconds(100));
  ScriptedServer server({}, twin);
  failpoints::Reset();
  EXPECT_TRUE(failpoints::Arm(fmt::format("{}#{}=ENOMEM*1", call, n)));
  auto backend = ClientMachine::Connect(server.TakeClientEnd(), kQuick);
  if (backend) machine.Live(**backend);
  const bool failed = failpoints::Fired() != 0;
  failpoints::Reset();
  EXPECT_THAT(machine.unsafe, IsEmpty()) << call << n;
  return failed;
}

TEST_P(VfioUserSweep, FailsCleanlyWhicheverSystemCallFails) {
  // How often a call is made depends on timing (what has arrived needs no poll), so one life without a
  // fault is not the end, and the first fault may take many.
  const auto patience = [](int n) { return n == 1 ? 100 : 4; };
  int n = 1;
  int quiet = 0;
  for (int life = 0; quiet < patience(n) && life < 400; ++life) {
    const size_t before = OpenDescriptors();
    const bool failed = LiveWhereTheCallFails(GetParam(), n, life % 2 == 0);
    quiet = failed ? 0 : quiet + 1;
    n += failed ? 1 : 0;
    EXPECT_EQ(SettledDescriptors(before), before) << life;
  }
  EXPECT_GT(n, 1) << "no fault fired";
}

INSTANTIATE_TEST_SUITE_P(Calls, VfioUserSweep,
                         ::testing::Values("sendmsg", "recvmsg", "setsockopt", "poll", "eventfd", "fcntl",
                                           "mmap", "fstat"),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace crossbar::vfio_user
