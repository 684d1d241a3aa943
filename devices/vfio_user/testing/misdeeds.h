// What a hostile server does with a message in place of an answer. For tests of the client.
#pragma once

#include <fcntl.h>
#include <linux/memfd.h>

#include <functional>
#include <thread>

#include "devices/vfio_user/connection.h"
#include "devices/vfio_user/testing/client_machine.h"

namespace crossbar::vfio_user::testing {

// Short, so that a server that never answers costs little.
inline constexpr Connection::Limits kHostileLimits{milliseconds(250), milliseconds(150),
                                                   milliseconds(100), 256u << 10};

using Misdeed = std::function<void(ScriptedServer&, Message&)>;

inline Misdeed Answers(std::function<ByteVector(const Message&)> body) {
  return [body](ScriptedServer& server, Message& message) { server.Reply(message, body(message)); };
}
inline Misdeed AnswersBytes(size_t count) {
  return Answers([count](const Message&) { return ByteVector(count); });
}
// What was asked for, changed, and so many bytes behind it, or as many as were asked for.
inline constexpr size_t kAsAsked = ~size_t{0};
inline Misdeed EchoesAccess(void (*change)(RegionAccess&), size_t data) {
  return Answers([=](const Message& message) {
    auto access = Decode<RegionAccess>(message.body).value();
    const ByteVector rest(data == kAsAsked ? access.count : data);
    change(access);
    return Join({Bytes(access), rest});
  });
}
inline void Never(ScriptedServer&, Message&) {}
inline void Closes(ScriptedServer& server, Message&) { server.Die(); }
inline void Refuses(ScriptedServer& server, Message& message) { server.Refuse(message, EIO); }
inline void RefusesWithoutReason(ScriptedServer& server, Message& message) {
  server.Refuse(message, 0);
}
inline void Twice(ScriptedServer& server, Message& message) {
  server.Behave(message);
  server.Behave(message);
}
inline void WrongId(ScriptedServer& server, Message& message) {
  ++message.header.id;
  server.Behave(message);
}
inline void WrongCommand(ScriptedServer& server, Message& message) {
  Message other;
  other.header = message.header;
  other.header.command = 99;
  server.Reply(other, message.body);
}
inline void WithDescriptors(ScriptedServer& server, Message& message) {
  server.Reply(message, message.body,
               {server.memory.fd.get(), server.memory.fd.get(), server.memory.fd.get()});
}
inline void Late(ScriptedServer& server, Message& message) {
  std::this_thread::sleep_for(kHostileLimits.reply * 2);
  server.Behave(message);
}
inline void Garbage(ScriptedServer& server, Message&) {
  ByteVector bytes(64);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(i * 37 + 11);
  server.Raw(bytes);
}
inline Misdeed SizedHeader(uint32_t size) {
  return [size](ScriptedServer& server, Message& message) {
    Header header = message.header;
    header.flags = Header::kReply;
    header.size = size;
    server.Raw(Bytes(header));
  };
}
inline void HalfHeader(ScriptedServer& server, Message& message) {
  server.Raw(Bytes(message.header).first(7));
}

inline ByteVector Dma(uint64_t address, uint64_t count, size_t data = 0) {
  return Join({Bytes(DmaAccess{address, count}), ByteVector(data, std::byte{0xee})});
}
inline void Flood(ScriptedServer& server, Message&) {
  const ByteVector request = Dma(ClientMachine::kRam, 0x10000);
  for (int i = 0; i < 20000; ++i) {
    if (!server.Send(Command::kDmaRead, request)) return;
  }
}

// A sealed file of huge pages, of which the machine may have none.
inline Fd HugePages() {
  Fd file = sys::MemfdCreate("huge", MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB).value();
  EXPECT_TRUE(sys::Ftruncate(file.get(), 2 * kMiB));
  EXPECT_TRUE(sys::AddSeals(file.get(), F_SEAL_SHRINK | F_SEAL_GROW));
  return file;
}

}  // namespace crossbar::vfio_user::testing
