// The vfio-user client against a server that behaves: what it sends, and how it takes what libvfio-user is
// known to answer; and G5, G6 and G7 where the server says no or nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "base/failpoint.h"
#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/misdeeds.h"
#include "devices/vfio_user/testing/served.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Connection::Limits kShort{milliseconds(300), milliseconds(200), milliseconds(200)};

// --- As libvfio-user answers -----------------------------------------------------------------------

TEST(VfioUserClient, TakesTheDescriptorThatComesOnlyWithALargeEnoughReply) {
  ScriptedServer server([](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kGetRegionInfo)) return false;
    RegionInfo info = self.InfoOn(message);
    if (info.index != 2) return false;
    SparseMmap sparse;
    sparse.header.id = CapabilityHeader::kSparseMmap;
    sparse.areas = 2;
    const std::array<SparseArea, 2> areas = {SparseArea{0x4000, 0x1000}, SparseArea{0, 0x2000}};
    const bool room = Decode<RegionInfo>(message.body)->argsz >= 8000;
    info.argsz = 8000;
    if (!room) {
      self.Reply(message, Bytes(info));
      return true;
    }
    info.flags |= RegionInfo::kCaps;
    info.cap_offset = sizeof info;
    self.Reply(message, Join({Bytes(info), Bytes(sparse), std::as_bytes(std::span(areas))}),
               {self.memory.fd.get()});
    return true;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  using Area = VfioBackend::Area;
  EXPECT_THAT(backend->region(2).mappable, ElementsAre(Area{0, 0x2000}, Area{0x2000, 0x2000},
                                                       Area{0x4000, 0x1000}, Area{0x5000, 0xb000}));
  const Backing mapped = backend->MapArea(2, {0x4000, 0x1000}).value();
  ASSERT_NE(mapped.host, Hva());
  EXPECT_EQ(mapped.file->offset, 0x4000u);
  *mapped.host.pointer() = std::byte{0x42};
  EXPECT_EQ(server.memory.at(0x4000), 0x42);
  EXPECT_EQ(backend->MapArea(2, {0x2000, 0x2000})->host, Hva()) << "not among the areas";
}

TEST(VfioUserClient, ReadsRegionDescriptorsOfBothLayouts) {
  for (const size_t stride : {40u, 48u}) {
    ScriptedServer server([stride](ScriptedServer& self, Message& message) {
      if (!Is(message, Command::kGetRegionIoFds)) return false;
      const Fd event = sys::EventFd().value();
      RegionIoFds header = Decode<RegionIoFds>(message.body).value();
      header.count = header.index == 0 ? 6 : 0;
      header.argsz = static_cast<uint32_t>(sizeof header + header.count * stride);
      ByteVector body = Join({Bytes(header), ByteVector(header.count * stride)});
      const auto put = [&](size_t entry, size_t at, uint64_t value, size_t size) {
        std::memcpy(body.data() + sizeof header + entry * stride + at, &value, size);
      };
      if (header.count != 0) {
        put(0, 0, 0x40, 8);
        put(0, 8, 4, 8);
        put(0, 24, 1, 4);  // with a value
        put(0, stride == 40 ? 32 : 40, 0x1234, 8);
        put(1, 0, 0x80, 8);
        put(1, 20, 2, 4);   // a shadow ioeventfd
        put(2, 0, 0xc0, 8);  // any size
        put(3, 0, 0xc0, 8);  // KVM takes it no more beside that,
        put(3, 8, 4, 8);
        put(4, 0, 0x40, 8);  // nor any value beside one,
        put(4, 8, 4, 8);
        put(5, 0, 0x40, 8);  // but another size
        put(5, 8, 2, 8);
      }
      self.Reply(message, body, header.count != 0 ? std::vector{event.get()} : std::vector<int>());
      return true;
    });
    const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
    const std::vector<IoEvent> events = backend->IoEvents(0);
    ASSERT_EQ(events.size(), 3u);
    EXPECT_EQ(events[0].address, Gpa(0x40));
    EXPECT_EQ(events[0].size, 4u);
    EXPECT_EQ(events[0].datamatch, 0x1234u);
    EXPECT_EQ(events[1].address, Gpa(0xc0));
    EXPECT_EQ(events[1].size, 0u);
    EXPECT_EQ(events[2].size, 2u);
    EXPECT_THAT(backend->IoEvents(2), IsEmpty());
  }
}

TEST(VfioUserClient, SetsInterruptsInMessagesThatTheServerCanTake) {
  struct Sent {
    uint32_t start, count;
    size_t fds;
    bool operator==(const Sent&) const = default;
  };
  std::vector<Sent> sent;
  ScriptedServer server([&](ScriptedServer&, Message& message) {
    if (!Is(message, Command::kSetIrqs)) return false;
    const auto irqs = Decode<SetIrqs>(message.body).value();
    EXPECT_EQ(irqs.flags, SetIrqs::kDataEventfd | SetIrqs::kTrigger);
    sent.push_back({irqs.start, irqs.count, message.fds.size()});
    return false;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  const Fd event = sys::EventFd().value();
  std::vector<int> events(20, event.get());
  events[11] = events[12] = -1;
  ASSERT_TRUE(backend->SetInterrupts(2, 5, events));
  EXPECT_THAT(sent, ElementsAre(Sent{5, 8, 8}, Sent{13, 3, 3}, Sent{16, 2, 0}, Sent{18, 7, 7}));
}

TEST(VfioUserClient, SendsHeaderAndBodyTogetherAndNoMoreThanASocketHolds) {
  auto ends = sys::SocketPair().value();
  auto connection = Connection::Create(std::move(ends.first), "test", kShort).value();
  const ByteVector data(200 * 1024);
  Connection::Request request;
  request.command = Command::kRegionWrite;
  const RegionAccess access{0, 0, 16};
  request.body = Bytes(access);
  request.data = std::span(data).first(16);
  failpoints::StartCensus();
  ASSERT_TRUE(connection->Start(request, Clock::now() + milliseconds(100)));
  EXPECT_EQ(failpoints::Census()["sendmsg"], 1u);
  failpoints::Reset();
  ByteVector all(100);
  std::vector<Fd> fds;
  EXPECT_EQ(sys::TryReceive(ends.second.get(), all, fds), 48) << "not one message";

  std::vector<uint32_t> sizes;
  ScriptedServer server([&](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kRegionWrite)) return false;
    sizes.push_back(message.header.size);
    self.Reply(message, std::span(message.body).first(16));
    return true;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ASSERT_TRUE(backend->Write(2, 0, std::span(data).first(0x10000)));
  EXPECT_THAT(sizes, ElementsAre(0x10000 + 32));
  EXPECT_FALSE(backend->Write(2, 8, std::span(data).first(0x10000))) << "over the end";
}

TEST(VfioUserClient, TakesErrorRepliesWithoutABody) {
  ScriptedServer server([](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kSetIrqs)) return false;
    self.Refuse(message, EINVAL);  // as libvfio-user to "disable all"
    return true;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  const Result<> disabled = backend->DisableInterrupts(2);
  ASSERT_FALSE(disabled);
  EXPECT_EQ(disabled.error().code(), EINVAL);
  EXPECT_EQ(disabled.error().message(), "test SET_IRQS: Invalid argument");
  EXPECT_FALSE(ClientMachine::Lost(*backend));
}

// --- DMA -------------------------------------------------------------------------------------------

TEST(VfioUserClient, G12GivesAwayOnlyWhatIsMappedAndSealed) {
  ClientMachine machine;
  ScriptedServer server;
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  // As a VFIO device's descriptor would be: a file, not sealed.
  SharedMemory open(0x1000, false);
  AddressSpace::Piece piece = ClientMachine::Peer(0x30000000, 0x1000, &machine.registers);
  piece.backing.host = open.map.address();
  piece.backing.file = Backing::Handle{open.fd.get(), 0};
  AddressSpace::Mapping unsealed = machine.space.Map({{piece}, {}}).value();
  piece = ClientMachine::Peer(0x30001000, 0x1000, &machine.registers);
  piece.backing.peers_may_map = false;
  AddressSpace::Mapping forbidden = machine.space.Map({{piece}, {}}).value();

  EXPECT_EQ(server.maps.size(), 4u);
  EXPECT_TRUE(server.maps.at(ClientMachine::kRam).second);
  EXPECT_EQ(server.maps.at(ClientMachine::kRam).first.flags, 3u);
  EXPECT_TRUE(server.maps.at(ClientMachine::kBar).second);
  EXPECT_FALSE(server.maps.at(ClientMachine::kRegisters).second);
  EXPECT_FALSE(server.maps.at(0x30000000).second);
  EXPECT_FALSE(server.maps.contains(0x30001000));
  std::vector<std::string> how;
  for (const auto& cell : machine.space.Peers().cells) how.push_back(cell.detail);
  EXPECT_THAT(how, ElementsAre("fd", "forwarded", "forwarded", "p2p=off"));
}

// The table of hostile servers has these too; here is what becomes of the region.
TEST(VfioUserClient, G12MapsNoFileThatCouldFaultIt) {
  const auto memfd = [](uint64_t size, bool sealed) { return std::move(SharedMemory(size, sealed).fd); };
  std::vector<Fd> files;
  files.push_back(memfd(ScriptedServer::kMemory, false));
  files.push_back(memfd(ScriptedServer::kMemory / 2, true));
  files.push_back(sys::EventFd().value());
  files.push_back(sys::Open("/dev/zero", O_RDWR).value());
  files.push_back(HugePages());
  for (const Fd& file : files) {
    ScriptedServer server([&](ScriptedServer& self, Message& message) {
      if (!Is(message, Command::kGetRegionInfo) || self.InfoOn(message).index != 2) return false;
      self.Reply(message, Bytes(self.InfoOn(message)), {file.get()});
      return true;
    });
    const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
    const VfioBackend::Area all{0, ScriptedServer::kMemory};
    EXPECT_THAT(backend->region(2).mappable, ElementsAre(all)) << "not even a target";
    const Backing backing = backend->MapArea(2, all).value();
    EXPECT_EQ(backing.host, Hva());
    EXPECT_FALSE(backing.file);
  }
}

TEST(VfioUserClient, G6ABarThatIsRefusedIsOneCellAndRamThatIsRefusedIsAnError) {
  ClientMachine machine;
  uint64_t refused = ClientMachine::kBar;
  ScriptedServer server([&](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kDmaMap)) return false;
    if (Decode<DmaMapRequest>(message.body)->address != refused) return false;
    self.Refuse(message, ENOSPC);
    return true;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  const auto cells = machine.space.Peers().cells;
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_EQ(cells[0].state, P2pMatrix::Cell::State::kRefused);
  EXPECT_THAT(cells[0].detail, HasSubstr("No space left"));
  EXPECT_EQ(cells[1].state, P2pMatrix::Cell::State::kMapped);
  machine.ZapPeers();
  backend->LeaveBus();
  refused = ClientMachine::kRam;
  const Result<> joined = backend->JoinBus(machine.space);
  ASSERT_FALSE(joined);
  EXPECT_THAT(joined.error().message(), HasSubstr("test cannot map guest RAM"));
}

TEST(VfioUserClient, G8RequestsForMemoryFailWithoutBusMastering) {
  for (const bool twin : {false, true}) {
    ClientMachine machine;
    machine.ram.Fill(0x44);
    std::vector<uint32_t> errors;
    ScriptedServer server(
        [&](ScriptedServer& self, Message& message) {
          if (!Is(message, Command::kRegionRead)) return false;
          const auto answer = self.Ask(Command::kDmaRead, Bytes(DmaAccess{ClientMachine::kRam, 8}));
          if (answer) errors.push_back(answer->header.error);
          if (answer && answer->body.size() == 24) {
            EXPECT_EQ(answer->body[16], std::byte{0x44});
          }
          return false;
        },
        twin);
    const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
    ASSERT_TRUE(backend->JoinBus(machine.space));
    std::array<std::byte, 4> word{};
    ASSERT_TRUE(backend->Read(0, 0, word));
    ASSERT_TRUE(ClientMachine::SetBusMaster(*backend));
    ASSERT_TRUE(backend->Read(0, 0, word));
    ASSERT_TRUE(ClientMachine::SetBusMaster(*backend, false));
    ASSERT_TRUE(backend->Read(0, 0, word));
    ASSERT_TRUE(ClientMachine::SetBusMaster(*backend));
    ASSERT_TRUE(backend->Reset());
    ASSERT_TRUE(backend->Read(0, 0, word));
    EXPECT_THAT(errors, ElementsAre(ENODEV, 0, ENODEV, ENODEV));
  }
}

TEST(VfioUserClient, ZapsSendAllUnmapsBeforeTheyAwaitOne) {
  ClientMachine machine;
  std::vector<Message> held;
  std::atomic<bool> hold = true;
  ScriptedServer server([&](ScriptedServer& self, Message& message) {
    if (!hold || !Is(message, Command::kDmaUnmap)) return false;
    held.push_back(std::move(message));
    // Answers, in reverse, only when both have come.
    if (held.size() == 2) {
      self.Behave(held[1]);
      self.Behave(held[0]);
    }
    return true;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd(), kShort).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  machine.ZapPeers();
  EXPECT_FALSE(ClientMachine::Lost(*backend));
  EXPECT_THAT(machine.space.Peers().cells, IsEmpty());
  hold = false;  // RAM goes alone
}

TEST(VfioUserClient, UnmapsManyPiecesWithoutFillingBothSockets) {
  ClientMachine machine;
  Served<DmaDevice> dma(WideDma(), "dma");
  ASSERT_TRUE(dma->JoinBus(machine.space));
  AddressSpace::Placement placement;
  for (uint64_t i = 0; i < 1000; ++i)
    placement.pieces.push_back(
        ClientMachine::Peer(0x40000000 + i * 0x2000, 0x1000, &machine.registers));
  AddressSpace::Mapping bar = machine.space.Map(std::move(placement)).value();
  EXPECT_EQ(dma.device().memory().size(), 1001u);
  machine.space.Zap(std::array{&bar});
  EXPECT_EQ(dma.device().memory().size(), 1u);
  EXPECT_FALSE(ClientMachine::Lost(dma.backend()));
}

class FakeProcess : public ServerProcess {
 public:
  bool KillAndReap() override {
    ++kills;
    if (on_kill) on_kill();
    return ends;
  }
  std::atomic<int> kills = 0;
  bool ends = true;
  std::function<void()> on_kill;
};

bool SilentToUnmaps(ScriptedServer&, Message& message) { return Is(message, Command::kDmaUnmap); }

TEST(VfioUserClient, G7AForeignServerThatDoesNotUnmapIsUnrevoked) {
  ClientMachine machine(milliseconds(300));
  ScriptedServer server(SilentToUnmaps);
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  const auto begun = Clock::now();
  machine.ZapPeers();
  EXPECT_LT(Clock::now() - begun, milliseconds(2000)) << "one deadline for all";
  EXPECT_THAT(machine.unsafe, IsEmpty());
  const auto cells = machine.space.Peers().cells;
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_EQ(cells[0].state, P2pMatrix::Cell::State::kUnrevoked);
  EXPECT_TRUE(ClientMachine::Lost(*backend));
}

TEST(VfioUserClient, G7AChildThatDoesNotUnmapIsKilledAndReapedBeforeTheAck) {
  ClientMachine machine(milliseconds(300));
  ScriptedServer server(SilentToUnmaps);
  auto process = std::make_shared<FakeProcess>();
  const auto backend =
      ClientMachine::Connect(server.TakeClientEnd(), Connection::Limits(), process).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  size_t slots_when_killed = 0;
  process->on_kill = [&] {
    if (slots_when_killed == 0) slots_when_killed = machine.slots.Slots().size();
  };
  machine.ZapPeers();
  EXPECT_GT(process->kills, 0);
  EXPECT_EQ(slots_when_killed, 2u) << "the memslot went before the DMA (G2)";
  EXPECT_THAT(machine.unsafe, IsEmpty());
  EXPECT_THAT(machine.space.Peers().cells, IsEmpty()) << "a dead server has nothing";
}

TEST(VfioUserClient, G7AChildThatDoesNotConfirmAMapIsEndedToo) {
  ClientMachine machine;
  ScriptedServer server([](ScriptedServer&, Message& message) {
    return Is(message, Command::kDmaMap) &&
           Decode<DmaMapRequest>(message.body)->address == ClientMachine::kBar;
  });
  auto process = std::make_shared<FakeProcess>();
  const auto backend = ClientMachine::Connect(server.TakeClientEnd(), kShort, process).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  EXPECT_GT(process->kills, 0);
  EXPECT_THAT(machine.space.Peers().cells, IsEmpty());
}

// Found by a map, before its owner has taken it out.
TEST(VfioUserClient, G7AChildThatIsFoundDeadIsReapedAndSoGone) {
  ClientMachine machine;
  ScriptedServer server([](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kReset)) return false;
    self.HangUp();
    return true;
  });
  auto process = std::make_shared<FakeProcess>();
  const auto backend =
      ClientMachine::Connect(server.TakeClientEnd(), Connection::Limits(), process).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  EXPECT_FALSE(backend->Reset());
  ASSERT_TRUE(machine.MapPeers());
  EXPECT_GT(process->kills, 0);
  EXPECT_THAT(machine.space.Peers().cells, IsEmpty()) << "a dead server has nothing";
}

// --- Calls and ends --------------------------------------------------------------------------------

TEST(VfioUserClient, AnswersReachTheirCallersInWhateverOrder) {
  for (const bool twin : {false, true}) {
    std::vector<Message> held;
    ScriptedServer server(
        [&](ScriptedServer& self, Message& message) {
          if (!Is(message, Command::kRegionRead)) return false;
          held.push_back(std::move(message));
          if (held.size() < 4) return true;
          for (auto one = held.rbegin(); one != held.rend(); ++one) {
            const auto access = Decode<RegionAccess>(one->body).value();
            const auto value = static_cast<uint32_t>(access.offset);
            self.Reply(*one, Join({Bytes(access), Bytes(value)}));
          }
          held.clear();
          return true;
        },
        twin);
    const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
    std::vector<std::thread> callers;
    for (uint32_t i = 0; i < 4; ++i) {
      callers.emplace_back([&, i] {
        for (int n = 0; n < 50; ++n) {
          uint32_t value = 0;
          const auto read =
              backend->Read(0, i * 4, std::as_writable_bytes(std::span(&value, 1)));
          EXPECT_TRUE(read) << read.error().message();
          EXPECT_EQ(value, i * 4);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
}

TEST(VfioUserClient, SaysThatAServerHungUpWhereNobodyWaits) {
  for (const int how : {0, 1, 2}) {
    ScriptedServer server({}, how != 0);
    const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
    EXPECT_FALSE(ClientMachine::Lost(*backend));
    if (how < 2) {
      server.Die();
    } else {
      server.HangUp();
    }
    pollfd poll{backend->lost_event(), POLLIN, 0};
    EXPECT_EQ(sys::Poll({&poll, 1}, 3000), 1);
    uint32_t word = 0;
    const auto read = backend->Read(0, 0, std::as_writable_bytes(std::span(&word, 1)));
    ASSERT_FALSE(read);
    EXPECT_THAT(read.error().message(), HasSubstr("test is lost: it hung up"));
  }
}

// Whether the first message can still be sent is chance; what is said is not.
TEST(VfioUserClient, AServerThatIsGoneBeforeTheFirstMessageHungUp) {
  auto ends = sys::SocketPair().value();
  ends.second.Reset();
  const auto backend = ClientMachine::Connect(std::move(ends.first));
  ASSERT_FALSE(backend);
  EXPECT_THAT(backend.error().message(), HasSubstr("it hung up"));
}

// A server that goes on asking while its requests take long: what waits is bounded.
TEST(VfioUserClient, G12CommandsThatWaitAreBounded) {
  ClientMachine machine;
  machine.registers.delay = milliseconds(100);
  ScriptedServer server([](ScriptedServer& self, Message& message) {
    if (!Is(message, Command::kRegionRead)) return false;
    const ByteVector write =
        Join({Bytes(DmaAccess{ClientMachine::kRegisters, 0x1000}), ByteVector(0x1000)});
    for (int i = 0; i < 200 && self.Send(Command::kDmaWrite, write, 7, Header::kNoReply); ++i) {
    }
    return false;
  });
  Connection::Limits limits;
  limits.queued_bytes = 100 * 1024;
  const auto backend = ClientMachine::Connect(server.TakeClientEnd(), limits).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_TRUE(ClientMachine::SetBusMaster(*backend));
  std::array<std::byte, 4> word{};
  const Result<> read = backend->Read(0, 0, word);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("a flood of commands"));
}

TEST(VfioUserClient, ConnectingSaysInOneLineWhatIsWrong) {
  const std::string folder = ::testing::TempDir();
  const auto complaint = [](const std::string& path) {
    const auto backend = VfioUserBackend::Connect(path);
    return backend ? "none" : backend.error().ToString();
  };
  EXPECT_THAT(complaint(folder + "no-such-socket"), HasSubstr("No such file or directory"));
  EXPECT_THAT(complaint("/dev/null"), HasSubstr("Connection refused"));
  EXPECT_THAT(complaint(std::string(200, 'x')), HasSubstr("a socket's path has 1 to 107 bytes"));
  EXPECT_THAT(complaint(""), HasSubstr("a socket's path has"));
}

}  // namespace
}  // namespace crossbar::vfio_user
