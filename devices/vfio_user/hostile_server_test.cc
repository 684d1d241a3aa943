// G12 for device servers: whatever one sends, the VM lives, the device is lost or its call fails, and nothing
// outside what it was given changes. Each case is one thing a server does wrong at one message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/socket.h>

#include <limits>
#include <ostream>

#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/misdeeds.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests

enum class Outcome { kRefused, kLost, kLives };

struct Case {
  const char* name;
  Command at;
  std::function<void(ScriptedServer&, Message&)> deed;
  Outcome outcome = Outcome::kLost;
  bool behaves_too = false;  // and then answers as it should
};
std::ostream& operator<<(std::ostream& out, const Case& one) { return out << one.name; }

ByteVector Text(std::string_view text) {
  ByteVector payload(4);
  const auto bytes = std::as_bytes(std::span(text));
  payload.insert(payload.end(), bytes.begin(), bytes.end());
  return payload;
}
auto SaysVersion(ByteVector payload) {
  return [payload](ScriptedServer& server, Message& message) { server.Reply(message, payload); };
}
auto SaysJson(std::string text) { return SaysVersion(Text(text + '\0')); }

// A region info reply changed by `change`, then `rest` behind it.
auto Region(std::function<void(RegionInfo&)> change, ByteVector rest = {}, unsigned index = 2) {
  return [=](ScriptedServer& server, Message& message) {
    RegionInfo info = server.InfoOn(message);
    std::vector<int> fds;
    if (info.index == 2) fds = {server.memory.fd.get()};
    if (info.index != index) return server.Reply(message, Bytes(info), fds);
    change(info);
    server.Reply(message, Join({Bytes(info), rest}), fds);
  };
}
ByteVector Areas(std::vector<SparseArea> areas, uint32_t count = ~0u, uint32_t next = 0) {
  SparseMmap sparse;
  sparse.header.id = CapabilityHeader::kSparseMmap;
  sparse.header.next = next;
  sparse.areas = count == ~0u ? static_cast<uint32_t>(areas.size()) : count;
  return Join({Bytes(sparse), std::as_bytes(std::span(areas))});
}
auto WithAreas(std::vector<SparseArea> areas, uint32_t count = ~0u, uint32_t next = 0) {
  return Region(
      [](RegionInfo& info) {
        info.flags |= RegionInfo::kCaps;
        info.cap_offset = sizeof info;
      },
      Areas(std::move(areas), count, next));
}
auto RegionFile(std::function<Fd()> make) {
  return [make](ScriptedServer& server, Message& message) {
    const Fd fd = make();
    const RegionInfo info = server.InfoOn(message);
    server.Reply(message, Bytes(info), info.index == 2 ? std::vector{fd.get()} : std::vector<int>());
  };
}
// Commands to the client in the middle of a read; the reply to each may be anything but silence.
auto Commands(Command command, std::vector<ByteVector> bodies, uint32_t flags = 0) {
  return [=](ScriptedServer& server, Message& message) {
    for (const ByteVector& body : bodies) {
      if (!server.Send(command, body, 7, flags) || !server.Answer()) return;
    }
    server.Behave(message);
  };
}
const uint64_t kHuge = std::numeric_limits<uint64_t>::max();

constexpr char kTwin[] =
    R"({"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}})";

std::vector<Case> AtVersion() {
  const auto at = Command::kVersion;
  const auto out = Outcome::kRefused;
  return {{"VersionShort", at, SaysVersion(ByteVector(2)), out},
          {"VersionUnterminated", at, SaysVersion(Text("{}")), out},
          {"VersionNoJson", at, SaysJson("{\"capabilities\":"), out},
          {"VersionArray", at, SaysJson("[]"), out},
          {"VersionDeep", at, SaysJson(std::string(15000, '[')), out},
          {"VersionCapabilitiesNumber", at, SaysJson("{\"capabilities\":1}"), out},
          {"VersionFdsText", at, SaysJson("{\"capabilities\":{\"max_msg_fds\":\"8\"}}"), out},
          {"VersionFdsMany", at, SaysJson("{\"capabilities\":{\"max_msg_fds\":4294967296}}"), out},
          {"VersionTransferZero", at,
           SaysJson("{\"capabilities\":{\"max_data_xfer_size\":0}}"), out},
          {"VersionPagesZero", at, SaysJson("{\"capabilities\":{\"pgsizes\":0}}"), out},
          {"VersionTwinWithoutSocket", at, SaysJson(kTwin), out},
          {"VersionTwinOfTheInternet", at,
           [](ScriptedServer& server, Message& message) {
             const Fd tcp(::socket(AF_INET, SOCK_STREAM, 0));
             server.Reply(message, Join({ByteVector(4), std::as_bytes(std::span(kTwin))}), {tcp.get()});
           },
           out},
          {"VersionTwinIndex", at,
           SaysJson("{\"capabilities\":{\"twin_socket\":{\"supported\":true,\"fd_index\":-1}}}"),
           out},
          {"VersionMajor", at, SaysVersion(ByteVector(4, std::byte{1})), out},
          {"VersionHuge", at, SaysJson("{" + std::string(20000, ' ') + "}"), out},
          {"VersionRefused", at, Refuses, out},
          {"VersionNever", at, Never, out},
          {"VersionCloses", at, Closes, out},
          {"VersionGarbage", at, Garbage, out},
          {"VersionSizeNone", at, SizedHeader(0), out},
          {"VersionSizeHuge", at, SizedHeader(0xffffffff), out},
          {"VersionHalf", at, HalfHeader, out},
          {"VersionHalfBody", at, SizedHeader(64), out},
          {"VersionWrongId", at, WrongId, out},
          {"VersionWrongCommand", at, WrongCommand, out}};
}

std::vector<Case> AtInfo() {
  const auto out = Outcome::kRefused;
  const auto info = [](uint32_t flags, uint32_t regions) {
    return Answers([=](const Message&) {
      DeviceInfo device;
      device.flags = flags;
      device.regions = regions;
      device.irqs = 5;
      return Join({Bytes(device)});
    });
  };
  const auto irqs = [](uint32_t index, uint32_t count) {
    return Answers([=](const Message& message) {
      IrqInfo irq = Decode<IrqInfo>(message.body).value();
      irq.flags = IrqInfo::kEventfd;
      irq.index += index;
      irq.count = count;
      return Join({Bytes(irq)});
    });
  };
  return {{"InfoShort", Command::kGetInfo, AnswersBytes(3), out},
          {"InfoLong", Command::kGetInfo, AnswersBytes(5000), out},
          {"InfoNoPci", Command::kGetInfo, info(DeviceInfo::kReset, 9), out},
          {"InfoNoRegions", Command::kGetInfo, info(DeviceInfo::kPci, 0), out},
          {"InfoManyRegions", Command::kGetInfo, info(DeviceInfo::kPci, ~0u), Outcome::kLives},
          {"InfoRefused", Command::kGetInfo, Refuses, out},
          {"InfoCloses", Command::kGetInfo, Closes, out},
          {"InfoNever", Command::kGetInfo, Never, out},
          {"InfoTwice", Command::kGetInfo, Twice, out},
          {"IrqInfoShort", Command::kGetIrqInfo, AnswersBytes(8), out},
          {"IrqInfoMany", Command::kGetIrqInfo, irqs(0, ~0u), out},
          {"IrqInfoOfAnother", Command::kGetIrqInfo, irqs(1, 1), out},
          {"IrqInfoRefused", Command::kGetIrqInfo, Refuses, out}};
}

std::vector<Case> AtRegions() {
  const auto at = Command::kGetRegionInfo;
  const auto out = Outcome::kRefused;
  const auto caps = [](uint32_t offset) {
    return [offset](RegionInfo& info) {
      info.flags |= RegionInfo::kCaps;
      info.cap_offset = offset;
    };
  };
  const auto memfd = [](uint64_t size, bool sealed) {
    return [=] { return std::move(SharedMemory(size, sealed).fd); };
  };
  return {
      {"RegionShort", at, AnswersBytes(31), out},
      {"RegionOfAnother", at, Region([](RegionInfo& info) { info.index = 3; }), out},
      {"RegionSizeHuge", at, Region([](RegionInfo& info) { info.size = kHuge; }), out},
      {"RegionOffsetHuge", at, Region([](RegionInfo& info) { info.offset = kHuge - 0xfff; }), out},
      {"RegionOffsetOdd", at, Region([](RegionInfo& info) { info.offset = 0x800; }),
       Outcome::kLives},
      {"RegionNoConfig", at, Region([](RegionInfo& info) { info.size = 0; }, {}, 7), out},
      {"RegionCapsOutside", at, Region(caps(0x10000)), out},
      {"RegionCapsInside", at, Region(caps(8), ByteVector(64)), out},
      {"RegionCapsOverEnd", at, Region(caps(sizeof(RegionInfo)), ByteVector(7)), out},
      {"RegionCapsLoop", at, WithAreas({}, 0, sizeof(RegionInfo)), out},
      {"RegionAreasMany", at, WithAreas({{0, 0x1000}}, 0xfffffffe), out},
      {"RegionAreaOutside", at, WithAreas({{0x10000, 0x1000}}), out},
      {"RegionAreaWraps", at, WithAreas({{kHuge - 0xfff, 0x2000}}), out},
      {"RegionAreaHuge", at, WithAreas({{0x1000, kHuge - 0x1000}}), out},
      {"RegionAreasOverlap", at, WithAreas({{0x2000, 0x2000}, {0, 0x3000}}), out},
      {"RegionAreaOdd", at, WithAreas({{0x10, 0x1000}, {0x2000, 0x20}}), Outcome::kLives},
      {"RegionAreaEmpty", at, WithAreas({{0x1000, 0}}), Outcome::kLives},
      {"RegionArgszHuge", at, Region([](RegionInfo& info) { info.argsz = ~0u; }), Outcome::kLives},
      {"RegionFileShort", at, RegionFile(memfd(0x1000, true)), Outcome::kLives},
      {"RegionFileUnsealed", at, RegionFile(memfd(0x10000, false)), Outcome::kLives},
      {"RegionFileEvent", at, RegionFile([] { return sys::EventFd().value(); }), Outcome::kLives},
      {"RegionFileOfHugePages", at, RegionFile(HugePages), Outcome::kLives},
      {"RegionFileSocket", at, RegionFile([] { return sys::SocketPair().value().first; }),
       Outcome::kLives},
      {"RegionFilesThree", at, WithDescriptors, out},
      {"RegionRefused", at, Refuses, out},
      {"RegionCloses", at, Closes, out}};
}

// Descriptors for writes to a region: whatever is wrong with them, the writes trap instead.
std::vector<Case> AtIoFds() {
  const auto at = Command::kGetRegionIoFds;
  struct Entry {
    uint64_t offset = 0x40;
    uint64_t size = 4;
    uint32_t fd = 0;
    uint32_t type = 0;
    uint32_t flags = 0;
    uint32_t padding = 0;
    uint64_t datamatch = 0;
  };
  const auto says = [](std::function<void(RegionIoFds&)> change, std::vector<Entry> entries,
                       bool event = true) {
    return [=](ScriptedServer& server, Message& message) {
      const Fd fd = event ? sys::EventFd().value() : std::move(SharedMemory(0x1000).fd);
      auto header = Decode<RegionIoFds>(message.body).value();
      header.count = static_cast<uint32_t>(entries.size());
      header.argsz = static_cast<uint32_t>(sizeof header + entries.size() * sizeof(Entry));
      change(header);
      server.Reply(message, Join({Bytes(header), std::as_bytes(std::span(entries))}), {fd.get()});
    };
  };
  const auto as_is = [](RegionIoFds&) {};
  return {{"IoFdsShort", at, AnswersBytes(3), Outcome::kLives},
          {"IoFdsLong", at, AnswersBytes(0x8000)},
          {"IoFdsNever", at, Never},
          {"IoFdsCloses", at, Closes},
          {"IoFdsTwice", at, Twice},
          {"IoFdsGarbage", at, Garbage},
          {"IoFdsOfAnother", at, says([](RegionIoFds& h) { h.index = 5; }, {{}}), Outcome::kLives},
          {"IoFdsMany", at, says([](RegionIoFds& h) { h.count = ~0u; }, {{}}), Outcome::kLives},
          {"IoFdsArgszHuge", at, says([](RegionIoFds& h) { h.argsz = ~0u; }, {{}}), Outcome::kLives},
          {"IoFdsArgszZero", at, says([](RegionIoFds& h) { h.argsz = 0; }, {{}}), Outcome::kLives},
          {"IoFdsIndex", at, says(as_is, {{.fd = 1}}), Outcome::kLives},
          {"IoFdsOutside", at, says(as_is, {{.offset = kHuge}}), Outcome::kLives},
          {"IoFdsOverEnd", at, says(as_is, {{.offset = 0xfffffe}}), Outcome::kLives},
          {"IoFdsSizeOdd", at, says(as_is, {{.size = 3}}), Outcome::kLives},
          {"IoFdsSizeHuge", at, says(as_is, {{.size = kHuge}}), Outcome::kLives},
          {"IoFdsOnePlaceTwice", at, says(as_is, {{}, {}}), Outcome::kLives},
          {"IoFdsNoEvent", at, says(as_is, {{}}, false), Outcome::kLives}};
}

std::vector<Case> InUse() {
  std::vector<Case> cases;
  static constexpr std::pair<Command, const char*> kCommands[] = {
      {Command::kDmaMap, "Map"},        {Command::kDmaUnmap, "Unmap"},
      {Command::kSetIrqs, "Irqs"},      {Command::kRegionRead, "Read"},
      {Command::kRegionWrite, "Write"}, {Command::kReset, "Reset"}};
  static constexpr std::pair<const char*, void (*)(ScriptedServer&, Message&)> kDeeds[] = {
      {"Never", Never},         {"Closes", Closes},
      {"Twice", Twice},         {"WrongId", WrongId},
      {"WrongCommand", WrongCommand}, {"Descriptors", WithDescriptors},
      {"Late", Late},           {"Garbage", Garbage},
      {"Half", HalfHeader}};
  static std::vector<std::string> names;  // Case has only a pointer
  names.reserve(std::size(kCommands) * (std::size(kDeeds) + 2));
  for (const auto& [command, name] : kCommands) {
    for (const auto& [deed, run] : kDeeds) {
      names.push_back(std::string(name) + deed);
      cases.push_back({names.back().c_str(), command, run});
    }
    names.push_back(std::string(name) + "Refused");
    const bool unmap = command == Command::kDmaUnmap;
    cases.push_back({names.back().c_str(), command, Refuses,
                     unmap ? Outcome::kLost : Outcome::kLives});
    names.push_back(std::string(name) + "RefusedWithoutReason");
    cases.push_back({names.back().c_str(), command, RefusesWithoutReason,
                     unmap ? Outcome::kLost : Outcome::kLives});
  }
  cases.push_back({"UnmapOfMore", Command::kDmaUnmap, Answers([](const Message& message) {
                     auto changed = Decode<DmaUnmapRequest>(message.body).value();
                     changed.size += 0x1000;
                     return Join({Bytes(changed)});
                   })});
  cases.push_back({"UnmapHalfEcho", Command::kDmaUnmap, AnswersBytes(12)});
  const auto as_is = [](RegionAccess&) {};
  const auto more = [](RegionAccess& access) { access.count += 4; };
  const auto behind = [](RegionAccess& access) { access.offset += 4; };
  const auto another = [](RegionAccess& access) { access.region ^= 1; };
  const auto read = Command::kRegionRead;
  const auto write = Command::kRegionWrite;
  cases.push_back({"ReadShort", read, AnswersBytes(5)});
  cases.push_back({"ReadLong", read, AnswersBytes(0x8000)});
  cases.push_back({"ReadOfNothing", read, EchoesAccess(as_is, 0)});
  cases.push_back({"ReadOfMore", read, EchoesAccess(more, kAsAsked)});
  cases.push_back({"ReadBehind", read, EchoesAccess(behind, kAsAsked)});
  cases.push_back({"ReadOfAnother", read, EchoesAccess(another, kAsAsked)});
  cases.push_back({"WriteShort", write, AnswersBytes(1)});
  cases.push_back({"WriteOfMore", write, EchoesAccess(more, 0)});
  cases.push_back({"WriteBehind", write, EchoesAccess(behind, 0)});
  cases.push_back({"WriteOfAnother", write, EchoesAccess(another, 0)});
  return cases;
}

// While the peers' BARs are mapped: at the reset of the interrupts.
std::vector<Case> OfItsOwn() {
  const auto at = Command::kSetIrqs;
  const uint64_t ram_end = ClientMachine::kRam + ClientMachine::kRamSize;
  const std::vector<ByteVector> bad = {Dma(0, 16),
                                       Dma(ram_end, 16),
                                       Dma(ram_end - 8, 16),
                                       Dma(ClientMachine::kRam - 8, 16),
                                       Dma(kHuge - 7, 16),
                                       Dma(kHuge, 1),
                                       Dma(ClientMachine::kRam, 0),
                                       Dma(ClientMachine::kRam, kHuge),
                                       Dma(ClientMachine::kRam, kMaxTransfer + 1),
                                       ByteVector(3)};
  std::vector<ByteVector> bad_writes = bad;
  bad_writes.push_back(Dma(ram_end - 8, 16, 16));
  bad_writes.push_back(Dma(ClientMachine::kRam, 16, 4));
  bad_writes.push_back(Dma(ClientMachine::kRam, 4, 16));
  bad_writes.push_back(Dma(kHuge - 7, 16, 16));
  return {
      {"DmaReadsOutside", at, Commands(Command::kDmaRead, bad), Outcome::kLives},
      {"DmaWritesOutside", at, Commands(Command::kDmaWrite, bad_writes), Outcome::kLives},
      {"DmaReadFlood", at, Flood, Outcome::kLost},
      {"CommandUnknown", at, Commands(Command{77}, {{}}), Outcome::kLost},
      {"CommandOfAClient", at, Commands(Command::kDmaMap, {ByteVector(32)}), Outcome::kLost},
      {"CommandTypeUnknown", at, Commands(Command::kDmaRead, {Dma(0, 1)}, 5), Outcome::kLost},
      {"CommandWithDescriptors", at,
       [](ScriptedServer& server, Message&) {
         server.Send(Command::kDmaRead, Dma(ClientMachine::kRam, 8), 7, 0,
                     {server.memory.fd.get()});
       },
       Outcome::kLost},
      {"CommandReplyOutOfTheBlue", at, Commands(Command::kDmaRead, {Dma(0, 1)}, Header::kReply),
       Outcome::kLost},
  };
}

std::vector<Case> AllCases() {
  std::vector<Case> all;
  for (const auto& some : {AtVersion(), AtInfo(), AtRegions(), AtIoFds(), InUse(), OfItsOwn()})
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

class HostileServer : public ::testing::TestWithParam<std::tuple<Case, bool>> {};

TEST_P(HostileServer, G12CostsTheDeviceAndNothingElse) {
  const auto& [deed, twin] = GetParam();
  const size_t before = OpenDescriptors();
  const auto begun = Clock::now();
  {
    ClientMachine machine(milliseconds(350));
    machine.ram.Fill(0x11);
    machine.peer.Fill(0x22);
    // Only the first message of its kind, and of interrupts only those that come when all is mapped.
    ScriptedServer server(
        [&](ScriptedServer& self, Message& message) {
          if (message.header.command != static_cast<uint16_t>(deed.at)) return false;
          if (deed.at == Command::kSetIrqs && !self.maps.contains(ClientMachine::kBar)) return false;
          deed.deed(self, message);
          return true;
        },
        twin);
    auto backend = ClientMachine::Connect(server.TakeClientEnd(), kHostileLimits);
    EXPECT_EQ(!backend, deed.outcome == Outcome::kRefused);
    if (backend) {
      machine.Live(**backend);
      EXPECT_EQ(ClientMachine::Lost(**backend), deed.outcome == Outcome::kLost);
      uint32_t word = 0;
      const Result<> read = (*backend)->Read(0, 0, std::as_writable_bytes(std::span(&word, 1)));
      if (deed.outcome == Outcome::kLost) {
        EXPECT_FALSE(read);
      }
    } else {
      EXPECT_THAT(backend.error().ToString(), ::testing::Not(::testing::HasSubstr("\n")));
    }
    EXPECT_THAT(machine.unsafe, ::testing::IsEmpty()) << "the VM would have stopped";
    EXPECT_EQ(machine.ram.at(ClientMachine::kRamSize - 8), 0x11);
    EXPECT_EQ(machine.ram.at(0), 0x11);
    EXPECT_EQ(machine.peer.at(0), 0x22);
    EXPECT_TRUE(machine.slots.Slots().size() == 1) << "only RAM is left";
  }
  EXPECT_EQ(SettledDescriptors(before), before) << "descriptors leaked";
  EXPECT_LT(Clock::now() - begun, std::chrono::seconds(10));
}

INSTANTIATE_TEST_SUITE_P(All, HostileServer,
                         ::testing::Combine(::testing::ValuesIn(AllCases()), ::testing::Bool()),
                         [](const auto& one) {
                           return std::string(std::get<0>(one.param).name) +
                                  (std::get<1>(one.param) ? "WithTwin" : "");
                         });

}  // namespace
}  // namespace crossbar::vfio_user
