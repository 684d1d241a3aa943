// G12: a server's descriptors may be of a file system that the server itself is, and never answers. The client
// asks nothing of such a file, and closes it where that may wait.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/hanging_file.h"
#include "devices/vfio_user/testing/misdeeds.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::IsEmpty;

struct Place {
  const char* name;
  Command at;
  std::function<void(ScriptedServer&, Message&, int fd)> send;
};

std::vector<Place> Places() {
  return {
      {"Region", Command::kGetRegionInfo,
       [](ScriptedServer& server, Message& message, int fd) {
         const RegionInfo info = server.InfoOn(message);
         server.Reply(message, Bytes(info), info.index == 2 ? std::vector{fd} : std::vector<int>());
       }},
      {"TwinSocket", Command::kVersion,
       [](ScriptedServer& server, Message& message, int fd) {
         Version version;
         version.minor = 1;
         version.twin_socket = true;
         version.twin_fd_index = 0;
         server.Reply(message, EncodeVersion(version), {fd});
       }},
      {"IoEvents", Command::kGetRegionIoFds,
       [](ScriptedServer& server, Message& message, int fd) {
         auto header = Decode<RegionIoFds>(message.body).value();
         header.count = 1;
         header.argsz = sizeof header + 40;
         server.Reply(message, Join({Bytes(header), ByteVector(40)}), {fd});
       }},
      {"Unasked", Command::kRegionRead,
       [](ScriptedServer& server, Message& message, int fd) {
         server.Reply(message, message.body, {fd, fd});
       }},
      {"Command", Command::kDmaMap,
       [](ScriptedServer& server, Message& message, int fd) {
         server.Send(Command::kDmaRead, Dma(ClientMachine::kRam, 8), 7, 0, {fd});
         server.Behave(message);
       }},
  };
}

TEST(VfioUserHangingFile, G12NothingIsAskedOfIt) {
  for (const Place& place : Places()) {
    const auto file = HangingFile::Make();
    if (!file) GTEST_SKIP() << file.error().message();
    const auto begun = Clock::now();
    {
      ClientMachine machine(milliseconds(350));
      ScriptedServer server([&](ScriptedServer& self, Message& message) {
        if (message.header.command != static_cast<uint16_t>(place.at)) return false;
        place.send(self, message, (*file)->fd());
        return true;
      });
      auto backend = ClientMachine::Connect(server.TakeClientEnd(), kHostileLimits);
      if (backend) machine.Live(**backend);
      EXPECT_THAT(machine.unsafe, IsEmpty()) << place.name;
    }
    EXPECT_LT(Clock::now() - begun, milliseconds(3000)) << place.name;
    EXPECT_THAT((*file)->asked(), IsEmpty()) << place.name;
  }
}

// That the file does hang, so that the test above means something.
TEST(VfioUserHangingFile, HangsWhoAsks) {
  auto file = HangingFile::Make();
  if (!file) GTEST_SKIP() << file.error().message();
  const Fd own(::dup((*file)->fd()));  // not closed, as the file's own is, while it is asked
  std::atomic<bool> answered = false;
  std::thread asks([&] {
    (void)sys::FileSize(own.get());
    answered = true;
  });
  while ((*file)->asked().empty()) std::this_thread::yield();
  EXPECT_FALSE(answered);
  file->reset();
  asks.join();
}

}  // namespace
}  // namespace crossbar::vfio_user
