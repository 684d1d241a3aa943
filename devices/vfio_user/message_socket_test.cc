// What a peer can do with the bytes and descriptors of single messages, against either side.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "devices/vfio_user/testing/client_machine.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::HasSubstr;

// A socket, and the raw end of another who speaks to it.
struct Talk {
  explicit Talk(milliseconds stall = milliseconds(2000)) {
    auto ends = sys::SocketPair().value();
    socket = std::make_unique<MessageSocket>(std::move(ends.first), stall);
    peer = std::move(ends.second);
  }
  void Say(std::span<const std::byte> bytes, std::vector<int> fds = {}) const {
    const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    EXPECT_EQ(sys::TrySend(peer.get(), {&part, 1}, fds), static_cast<ssize_t>(bytes.size()));
  }
  Result<std::optional<Message>> Hear(milliseconds wait = milliseconds(2000)) const {
    return socket->Receive(kMaxMessage, Clock::now() + wait);
  }

  std::unique_ptr<MessageSocket> socket;
  Fd peer;
};

ByteVector AMessage(size_t body) {
  Header header;
  header.command = static_cast<uint16_t>(Command::kReset);
  header.size = static_cast<uint32_t>(sizeof header + body);
  return Join({Bytes(header), ByteVector(body)});
}

TEST(VfioUserMessage, G12DripsGetNoMoreTimeThanOneMessage) {
  constexpr auto kStall = milliseconds(400);
  const Talk talk(kStall);
  const ByteVector message = AMessage(1000);
  const auto begun = Clock::now();
  std::thread drips([&] {
    size_t at = 0;
    for (const size_t size : {1u, 15u, 500u, 500u}) {
      talk.Say(std::span(message).subspan(at, size));
      at += size;
      std::this_thread::sleep_for(kStall * 3 / 4);
    }
  });
  const auto heard = talk.Hear(milliseconds(10000));
  EXPECT_LT(Clock::now() - begun, kStall * 3 / 2);
  drips.join();
  ASSERT_FALSE(heard);
  EXPECT_THAT(heard.error().message(), HasSubstr("it stopped within a message"));
}

TEST(VfioUserMessage, G12WhatHasBegunEndsWhenWhoWaitsMustGoOn) {
  for (const size_t begun_with : {1u, 16u, 100u}) {
    const Talk talk(milliseconds(5000));
    const ByteVector message = AMessage(1000);
    talk.Say(std::span(message).first(begun_with));
    const auto begun = Clock::now();
    EXPECT_FALSE(talk.Hear(milliseconds(100)));
    EXPECT_LT(Clock::now() - begun, milliseconds(1500)) << begun_with;
  }
}

// As a whole: an access to a device whose server drips; a forward is one, too, and a zap may wait for that.
TEST(VfioUserMessage, G12AnAccessEndsInItsTimeHoweverItsServerDrips) {
  constexpr auto kTime = milliseconds(500);
  for (const bool twin : {false, true}) {
    ScriptedServer server(
        [&](ScriptedServer& self, Message& message) {
          if (!Is(message, Command::kRegionRead)) return false;
          Header header = message.header;
          header.flags = Header::kReply;
          header.size = static_cast<uint32_t>(sizeof header + message.body.size() + 4);
          const ByteVector reply = Join({Bytes(header), message.body, ByteVector(4)});
          size_t at = 0;
          for (const size_t size : {size_t{1}, size_t{15}, reply.size() - 16}) {
            std::this_thread::sleep_for(kTime * 19 / 20);
            self.Raw(std::span(reply).subspan(at, size));
            at += size;
          }
          return true;
        },
        twin);
    Connection::Limits limits;
    limits.reply = limits.forward = limits.stall = kTime;
    const auto backend = ClientMachine::Connect(server.TakeClientEnd(), limits).value();
    std::array<std::byte, 4> word{};
    const auto begun = Clock::now();
    EXPECT_FALSE(backend->Read(0, 0, word));
    EXPECT_LT(Clock::now() - begun, kTime * 8 / 5) << twin;
    EXPECT_TRUE(ClientMachine::Lost(*backend));
  }
}

// With each byte of a header, or each time with the end of one message and the begin of the next.
TEST(VfioUserMessage, G12DescriptorsDoNotPileUp) {
  const SharedMemory memory(0x1000);
  const ByteVector message = AMessage(8);
  const std::vector<int> files(8, memory.fd.get());
  {
    const Talk talk;
    for (size_t i = 0; i < sizeof(Header); ++i) talk.Say(std::span(message).subspan(i, 1), files);
    const auto heard = talk.Hear();
    ASSERT_FALSE(heard);
    EXPECT_THAT(heard.error().message(), HasSubstr("descriptors at once"));
  }
  const Talk talk;
  talk.Say(std::span(message).first(1));
  ByteVector next(message.begin() + 1, message.end());
  next.push_back(message.front());
  const size_t before = OpenDescriptors();
  size_t most = 0;
  Result<std::optional<Message>> heard;
  for (int i = 0; i < 100 && heard; ++i) {
    talk.Say(next, files);
    heard = talk.Hear();
    most = std::max(most, OpenDescriptors());
  }
  EXPECT_LE(most, before + kOurMessageFds + 8);
}

// What is read ahead may end within the header of a message that brings descriptors.
TEST(VfioUserMessage, DescriptorsStayWithTheirMessageWhereverAReadEnds) {
  const SharedMemory first(0x1000), second(0x2000);
  for (size_t odd = 0; odd < 40; ++odd) {
    const Talk talk;
    constexpr size_t kBefore = 21;
    talk.Say(AMessage(odd));
    for (size_t i = 1; i < kBefore; ++i) talk.Say(AMessage(8));
    talk.Say(AMessage(8), {first.fd.get()});
    talk.Say(AMessage(8));
    talk.Say(AMessage(8), {second.fd.get()});
    for (size_t i = 0; i < kBefore + 3; ++i) {
      const auto heard = talk.Hear();
      ASSERT_TRUE(heard && *heard);
      const bool brings = i == kBefore || i == kBefore + 2;
      ASSERT_EQ((*heard)->fds.size(), brings ? 1u : 0u) << "message " << i << ", the first with " << odd;
      if (brings) {
        struct stat file{};
        ASSERT_EQ(::fstat((*heard)->fds.front().get(), &file), 0);
        EXPECT_EQ(file.st_size, i == kBefore ? 0x1000 : 0x2000);
      }
    }
  }
}

TEST(VfioUserMessage, TakesAsManyDescriptorsAsItSaysAndNoMore) {
  const SharedMemory memory(0x1000);
  for (const size_t more : {0u, 1u}) {
    const Talk talk;
    talk.Say(AMessage(8), std::vector<int>(kOurMessageFds + more, memory.fd.get()));
    const auto heard = talk.Hear();
    EXPECT_EQ(heard.has_value(), more == 0);
    if (heard) {
      EXPECT_EQ((*heard)->fds.size(), kOurMessageFds);
    }
  }
}

// Left to the kernel they would be closed by the thread that receives, however long that takes.
TEST(VfioUserMessage, G12DescriptorsWithinAMessageAreNotLeftToTheKernel) {
  const Talk talk;
  const SharedMemory memory(0x1000);
  const ByteVector message = AMessage(1000);
  talk.Say(std::span(message).first(600));  // more than is read ahead
  talk.Say(std::span(message).subspan(600), {memory.fd.get()});
  const auto heard = talk.Hear();
  ASSERT_FALSE(heard);
  EXPECT_THAT(heard.error().message(), HasSubstr("it passes descriptors within a message"));
}

// They would wait in the queue with it, where nobody counts them.
TEST(VfioUserMessage, G12ACommandWithDescriptorsIsNotQueued) {
  ClientMachine machine;
  machine.registers.delay = milliseconds(2000);
  ScriptedServer server([&](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kRegionRead)) return false;
    self.Send(Command::kDmaRead, Bytes(DmaAccess{ClientMachine::kRegisters, 8}));
    while (!machine.registers.entered) std::this_thread::yield();
    self.Send(Command::kDmaRead, Bytes(DmaAccess{ClientMachine::kRegisters, 8}), 8, 0,
              std::vector<int>(4, self.memory.fd.get()));
    return false;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_TRUE(ClientMachine::SetBusMaster(*backend));
  std::array<std::byte, 4> word{};
  const auto begun = Clock::now();
  const Result<> read = backend->Read(0, 0, word);
  EXPECT_LT(Clock::now() - begun, milliseconds(1500)) << "it waits for its turn";
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("descriptors with DMA_READ"));
}

}  // namespace
}  // namespace crossbar::vfio_user
