// The client against libvfio-user, as far as that can be had without it: a server that answers to the byte
// what libvfio-user (efd091b, protocol 0.2) answers, and refuses what it refuses. Its rules are facts from its
// source and from what it was seen to send; a client that breaks one is refused, and a test here fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <linux/vfio.h>

#include <string_view>

#include "devices/vfio_user/testing/device_machine.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kVectors = 16;  // of MSI-X

// The server's own part: what it holds, and what it refused.
class LibvfioUser {
 public:
  explicit LibvfioUser(bool twin) : twin_(twin) {}

  bool operator()(ScriptedServer& server, Message& message) {
    const size_t size = message.body.size();
    const auto command = static_cast<Command>(message.header.command);
    // "no payload for cmd": legal for a reset alone.
    if (message.header.type() != 0 || (size == 0 && command != Command::kReset))
      return Refuse(server, message);
    switch (command) {
      case Command::kVersion: return Greet(server, message);
      case Command::kGetRegionInfo: return DescribeRegion(server, message);
      case Command::kGetIrqInfo: return DescribeIrq(server, message);
      case Command::kGetRegionIoFds: return DescribeIoFds(server, message);
      case Command::kSetIrqs: return SetInterrupts(server, message);
      case Command::kDmaMap: return Map(server, message);
      case Command::kDmaUnmap: return Unmap(server, message);
      case Command::kRegionRead:
      case Command::kRegionWrite: {
        const auto access = Decode<RegionAccess>(message.body);
        const bool write = command == Command::kRegionWrite;
        const bool valid = access && access->count != 0 && access->count <= kMaxTransfer &&
                           (!write || size - sizeof *access == access->count);
        if (!valid) return Refuse(server, message);
        if (on_access) on_access(server);
        return false;
      }
      case Command::kGetInfo:
      case Command::kReset: return false;
      default: return Refuse(server, message);
    }
  }

  std::vector<std::string> refused;
  std::map<uint64_t, uint64_t> maps;
  size_t most_maps = 64;
  std::array<bool, kVectors> events{};  // one list for INTx, MSI and MSI-X
  std::function<void(ScriptedServer&)> on_access;  // before it answers one

 private:
  bool Refuse(ScriptedServer& server, const Message& message, uint32_t error = EINVAL) {
    refused.push_back(CommandName(message.header.command));
    server.Refuse(message, error);
    return true;
  }

  bool Greet(ScriptedServer& server, Message& message) {
    // Text and its 0 are counted; the minor version is the lower one.
    const auto* text = reinterpret_cast<const char*>(message.body.data()) + 4;
    EXPECT_EQ(text[message.body.size() - 5], '\0');
    EXPECT_THAT(text, HasSubstr("\"twin_socket\":{\"supported\":true}"));
    if (twin_) return false;
    constexpr std::string_view kReply =
        R"({"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}})";
    server.Reply(message, Join({std::span(message.body).first(4), std::as_bytes(std::span(kReply)),
                                ByteVector(1)}));
    return true;
  }
  // BAR 2 with two areas, all the others without memory.
  bool DescribeRegion(ScriptedServer& server, Message& message) {
    const auto request = Decode<RegionInfo>(message.body);
    if (!request || request->argsz < sizeof(RegionInfo) || request->index >= 9)
      return Refuse(server, message);
    RegionInfo info = server.InfoOn(message);
    if (info.size == 0) info.flags = 0;
    if (info.index != 2) {
      server.Reply(message, Bytes(info));
      return true;
    }
    info.argsz = 80;
    if (request->argsz < info.argsz) {
      server.Reply(message, Bytes(info));  // and no descriptor
      return true;
    }
    info.flags |= RegionInfo::kCaps;
    info.cap_offset = sizeof info;
    SparseMmap sparse;
    sparse.header.id = CapabilityHeader::kSparseMmap;
    sparse.areas = 2;
    const std::array<SparseArea, 2> areas = {SparseArea{0, 0x1000}, SparseArea{0x2000, 0x1000}};
    server.Reply(message, Join({Bytes(info), Bytes(sparse), std::as_bytes(std::span(areas))}),
                 {server.memory.fd.get()});
    return true;
  }
  // Eventfds is all it says of any kind; ERR and REQ are always there.
  static uint32_t Count(uint32_t kind) { return kind == VFIO_PCI_MSIX_IRQ_INDEX ? kVectors : 1; }
  bool DescribeIrq(ScriptedServer& server, Message& message) {
    auto info = Decode<IrqInfo>(message.body).value();
    if (info.argsz < sizeof info || info.index >= 5) return Refuse(server, message);
    info.argsz = sizeof info;
    info.flags = IrqInfo::kEventfd;
    info.count = Count(info.index);
    server.Reply(message, Bytes(info));
    return true;
  }
  bool DescribeIoFds(ScriptedServer& server, Message& message) {
    auto info = Decode<RegionIoFds>(message.body).value();
    const uint64_t size = info.index == 0 ? ScriptedServer::kRegisters
                          : info.index == 2 ? ScriptedServer::kMemory : 0;
    if (info.flags != 0 || info.count != 0 || size == 0 || info.argsz > kMaxTransfer)
      return Refuse(server, message);
    info.argsz = sizeof info;
    server.Reply(message, Bytes(info));
    return true;
  }
  bool SetInterrupts(ScriptedServer& server, Message& message) {
    const auto irqs = Decode<SetIrqs>(message.body);
    if (!irqs || irqs->argsz < sizeof *irqs || irqs->index >= 5) return Refuse(server, message);
    const uint32_t data = irqs->flags & 7;
    const uint32_t action = irqs->flags & 0x38;
    const uint32_t count = Count(irqs->index);
    const bool all = irqs->count == 0;
    const bool valid =
        irqs->start < count && irqs->count <= count - irqs->start &&
        (data == 1 || data == 4) && (action == 8 || action == 16 || action == 32) &&
        (irqs->index < VFIO_PCI_ERR_IRQ_INDEX || action == SetIrqs::kTrigger) &&
        (!all || (irqs->start == 0 && irqs->flags == (SetIrqs::kTrigger | SetIrqs::kDataNone))) &&
        (message.fds.empty() ||
         (data == SetIrqs::kDataEventfd && message.fds.size() == irqs->count)) &&
        message.fds.size() <= 8;
    if (!valid) return Refuse(server, message);
    if (action == SetIrqs::kTrigger && irqs->index <= VFIO_PCI_MSIX_IRQ_INDEX) {
      // An end of a part of them is one only up to `count`, which it takes for the end.
      const uint32_t end = all ? count : message.fds.empty() ? irqs->count : irqs->start + irqs->count;
      for (uint32_t i = irqs->start; i < end; ++i) events[i] = !message.fds.empty();
    }
    server.Reply(message);
    return true;
  }
  bool Map(ScriptedServer& server, Message& message) {
    const auto map = Decode<DmaMapRequest>(message.body);
    if (!map || map->argsz < sizeof *map || (map->flags & ~3u) != 0 || map->size == 0 ||
        map->offset % kPageSize != 0 || map->size % kPageSize != 0 || message.fds.size() > 1)
      return Refuse(server, message);
    for (const auto& [address, size] : maps) {
      if (map->address < address + size && address < map->address + map->size)
        return Refuse(server, message);
    }
    if (maps.size() >= most_maps) return Refuse(server, message);
    maps[map->address] = map->size;
    server.Reply(message);
    return true;
  }
  bool Unmap(ScriptedServer& server, Message& message) {
    const auto unmap = Decode<DmaUnmapRequest>(message.body);
    if (!unmap || unmap->argsz < sizeof *unmap || unmap->flags != 0) return Refuse(server, message);
    const auto found = maps.find(unmap->address);
    if (found == maps.end() || found->second != unmap->size) return Refuse(server, message, ENOENT);
    maps.erase(found);
    server.Reply(message, message.body);
    return true;
  }

  const bool twin_;
};

// A capability for MSI-X, its table in BAR 0.
void AddMsix(ByteVector& config) {
  const auto put = [&](size_t at, uint32_t value, size_t size) {
    std::memcpy(config.data() + at, &value, size);
  };
  put(PCI_STATUS, PCI_STATUS_CAP_LIST, 2);
  put(PCI_CAPABILITY_LIST, 0x40, 1);
  put(PCI_INTERRUPT_PIN, 1, 1);
  put(0x40, PCI_CAP_ID_MSIX, 1);
  put(0x42, kVectors - 1, 2);
  put(0x44, 0x1000, 4);
  put(0x48, 0x1800, 4);
}

class WithLibvfioUser : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    AddMsix(server.config);
    ASSERT_TRUE(machine.Start(server.TakeClientEnd()));
  }
  void SetMsix(bool on) {
    machine.function->WriteConfig(0x42, 2, on ? PCI_MSIX_FLAGS_ENABLE : 0);
  }

  LibvfioUser peer{GetParam()};
  DeviceMachine machine;
  ScriptedServer server{[this](ScriptedServer& self, Message& message) { return peer(self, message); },
                        GetParam()};
};

TEST_P(WithLibvfioUser, ADeviceLivesWithoutBeingRefusedOnce) {
  ASSERT_TRUE(machine.MapPeers());
  EXPECT_EQ(peer.maps.size(), 8u) << "RAM, a page of BAR 0, BAR 2 in four parts, the peers' two";
  EXPECT_EQ(machine.ReadRegister(), 0u);
  machine.window->Write(0x10, 8, 0x1122334455667788);
  EXPECT_EQ(machine.window->Read(0x10, 8), 0x1122334455667788u);
  EXPECT_EQ(peer.events[0], true) << "INTx";
  // A vector of each, more than a message of its takes.
  for (uint64_t i = 0; i < kVectors; ++i) {
    machine.window->Write(0x1000 + 16 * i, 4, 0xfee00000);
    machine.window->Write(0x1008 + 16 * i, 4, 0x40 + i);
    machine.window->Write(0x100c + 16 * i, 4, 0);
  }
  SetMsix(true);
  EXPECT_THAT(peer.events, ::testing::Each(true));
  SetMsix(false);
  EXPECT_THAT(std::span(peer.events).subspan(1), ::testing::Each(false));
  EXPECT_TRUE(peer.events[0]) << "INTx after MSI-X has no vector";
  EXPECT_TRUE(machine.ZapPeers());
  machine.function->Reset();
  machine.function->WriteConfig(PCI_COMMAND, 2, 0);
  EXPECT_EQ(peer.maps.size(), 1u);
  EXPECT_FALSE(machine.function->lost());
  machine.function->Close();
  EXPECT_THAT(peer.maps, IsEmpty());
  EXPECT_THAT(peer.events, ::testing::Each(false));
  EXPECT_THAT(peer.refused, IsEmpty());
}

TEST_P(WithLibvfioUser, AMapThatIsOneTooManyIsACellAndIsNotUnmapped) {
  peer.most_maps = peer.maps.size() + 1;
  ASSERT_TRUE(machine.MapPeers());
  EXPECT_THAT(peer.refused, ElementsAre("DMA_MAP"));
  size_t refused = 0;
  for (const auto& cell : machine.space.Peers().cells)
    refused += cell.state == P2pMatrix::Cell::State::kRefused ? 1 : 0;
  EXPECT_EQ(refused, 1u);
  EXPECT_TRUE(machine.ZapPeers());
  EXPECT_THAT(peer.refused, ElementsAre("DMA_MAP")) << "unmapped what it did not map";
  EXPECT_FALSE(machine.function->lost());
}

TEST_P(WithLibvfioUser, ItsOwnDmaIsAnsweredInFull) {
  machine.ram.Fill(0x44);
  struct Answered {
    uint32_t error;
    size_t size;
    bool operator==(const Answered&) const = default;
  };
  std::vector<Answered> answers;
  peer.on_access = [&](ScriptedServer& self) {
    const auto ask = [&](Command command, uint64_t address, uint64_t count) {
      ByteVector body = Join({Bytes(DmaAccess{address, count})});
      if (command == Command::kDmaWrite) body.resize(body.size() + count, std::byte{0x55});
      if (const auto answer = self.Ask(command, body))
        answers.push_back({answer->header.error, answer->body.size()});
    };
    ask(Command::kDmaRead, ClientMachine::kRam, 100);
    ask(Command::kDmaWrite, ClientMachine::kRam + 0x1000, 100);
    ask(Command::kDmaRead, ClientMachine::kRam - 8, 16);
    ask(Command::kDmaWrite, 0, 8);
  };
  EXPECT_EQ(machine.ReadRegister(), 0u);
  peer.on_access = nullptr;
  // It takes 16 bytes for the answer to a write, and a header alone for an error.
  EXPECT_THAT(answers, ElementsAre(Answered{0, 116}, Answered{0, 16}, Answered{EFAULT, 0},
                                   Answered{EFAULT, 0}));
  EXPECT_EQ(machine.ram.at(0x1000), 0x55);
  EXPECT_EQ(machine.ram.at(0x1000 + 100), 0x44);
}

INSTANTIATE_TEST_SUITE_P(Sockets, WithLibvfioUser, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Twin" : "One"; });

// What it refuses at VERSION it refuses by an error, and hangs up.
TEST(LibvfioUser, AVersionThatItRefusesIsOneLine) {
  ScriptedServer server([](ScriptedServer& self, Message& message) {
    self.Refuse(message, EINVAL);
    self.Die();
    return true;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd());
  ASSERT_FALSE(backend);
  EXPECT_EQ(backend.error().ToString(), "test: test VERSION: Invalid argument");
}

// Servers say how much they take at once; a device with less than our own bound is used within it.
TEST(LibvfioUser, AccessesAreCutToWhatTheServerTakes) {
  std::vector<uint32_t> counts;
  ScriptedServer server([&](ScriptedServer& self, Message& message) {
    if (message.header.command == static_cast<uint16_t>(Command::kVersion)) {
      Version version;
      version.max_data_xfer_size = 4096;
      self.Reply(message, EncodeVersion(version));
      return true;
    }
    if (message.header.command == static_cast<uint16_t>(Command::kRegionRead))
      counts.push_back(Decode<RegionAccess>(message.body)->count);
    return false;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ByteVector data(10000);
  ASSERT_TRUE(backend->Read(2, 0, data));
  EXPECT_THAT(counts, ElementsAre(4096, 4096, 1808));
}

}  // namespace
}  // namespace crossbar::vfio_user
