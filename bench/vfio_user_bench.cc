// VfioUser: what the vfio-user client and our servers cost beside the least they could cost.
//
// A region access beside a bare ping-pong of as many bytes over a socket; the copy of peer-to-peer DMA beside
// memcpy of the same bytes; a zap by the number of peers, of our own servers and of slow ones. Servers are
// threads of this program, so that both sides of each contest wake the same kind of sleeper.
//
// Gates: an access takes at most 1.3 times the ping-pong; a copy from 1 MiB up at least 0.9 of memcpy's
// bandwidth; a zap with 16 peers at most twice as long a peer as with one. With 16 slow peers it is at most
// twice as long as with one in all, since they are slow at the same time: they are not waited for one
// after another. It asks each peer once, and nothing else.
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/sys.h"
#include "base/sys_socket.h"
#include "bench/harness.h"
#include "devices/vfio_user/testing/served.h"
#include "memory/address_space.h"

namespace crossbar::bench {
namespace {

using vfio_user::Command;
using vfio_user::Connection;
using vfio_user::DmaDevice;
using vfio_user::MemoryDevice;
using vfio_user::Message;
using vfio_user::MessageSocket;
using vfio_user::VfioUserDomain;
using vfio_user::testing::DmaDriver;
using vfio_user::testing::Served;
using vfio_user::testing::WideDma;

constexpr int kAccesses = 200;
constexpr uint64_t kCopies[] = {64 * kKiB, kMiB, 4 * kMiB, 16 * kMiB};
constexpr uint64_t kGatedCopy = kMiB;
constexpr unsigned kPeers[] = {1, 4, 16};
constexpr Gpa kBar(k4GiB);

class NoSlots : public MemslotTable {
 public:
  Result<uint32_t> Add(GuestRange, Hva, bool) override { return next_++; }
  Result<> Remove(uint32_t) override { return {}; }
  Result<> AddIoEvent(const IoEvent&) override { return {}; }
  Result<> RemoveIoEvent(const IoEvent&) override { return {}; }
  std::vector<Memslot> Slots() const override { return {}; }

 private:
  uint32_t next_ = 0;
};

// The least an access can be: a message there, a message back.
class PingPong {
 public:
  static constexpr size_t kThere = 32;  // as REGION_READ and its reply to 4 bytes
  static constexpr size_t kBack = 36;

  PingPong() {
    auto ends = sys::SocketPair().value();
    near_ = std::move(ends.first);
    thread_ = std::thread([far = std::move(ends.second)] {
      std::array<std::byte, kBack> buffer{};
      while (Receive(far.get(), std::span(buffer).first(kThere)))
        CHECK(sys::WriteAll(far.get(), buffer));
    });
  }
  ~PingPong() {
    (void)sys::Shutdown(near_.get());
    thread_.join();
  }

  void Once() {
    std::array<std::byte, kBack> buffer{};
    CHECK(sys::WriteAll(near_.get(), std::span(buffer).first(kThere)));
    CHECK(Receive(near_.get(), buffer));
  }

 private:
  static bool Receive(int fd, std::span<std::byte> buffer) {
    while (!buffer.empty()) {
      const Result<size_t> n = sys::Read(fd, buffer);
      if (!n || *n == 0) return false;
      buffer = buffer.subspan(*n);
    }
    return true;
  }

  Fd near_;
  std::thread thread_;
};

Result<> MeasureAccess(Gates& gates) {
  const OneCpu one;
  Served<MemoryDevice> memory(TRY(MemoryDevice::Create(kMiB)), "memory");
  PingPong ping_pong;
  const Limit limit{.ratio = 1.3, .on = Limit::On::kMedian};
  const auto ours = [&]() -> Result<std::vector<double>> {
    return std::vector{Timed([&] {
      std::array<std::byte, 4> word{};
      for (int i = 0; i < kAccesses; ++i) CHECK(memory->Read(0, 0, word));
    }) / kAccesses};
  };
  const auto bare = [&]() -> Result<std::vector<double>> {
    return std::vector{Timed([&] {
      for (int i = 0; i < kAccesses; ++i) ping_pong.Once();
    }) / kAccesses};
  };
  const std::vector<Pairs> pairs = TRY(Compare(ours, bare, limit, {}));
  Report("region_read", "ping_pong", pairs[0]);
  gates.Ratio("region read, crossbar / ping-pong", pairs[0], limit);
  return {};
}

Result<> MeasureCopies(Gates& gates) {
  const uint64_t largest = *std::ranges::max_element(kCopies);
  NoSlots slots;
  AddressSpace space(slots);
  Served<MemoryDevice> memory(TRY(MemoryDevice::Create(largest)), "memory");
  Served<DmaDevice> dma(WideDma(largest), "dma");
  TRY(dma->JoinBus(space));
  const uint16_t master = PCI_COMMAND_MASTER;
  TRY(dma->Write(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, vfio_user::Bytes(master)));
  DmaDriver driver(dma.backend());
  AddressSpace::Piece piece{{kBar, largest}, TRY(memory->MapArea(2, {0, largest}))};
  AddressSpace::Mapping bar = TRY(space.Map({{piece}, {}}));
  std::vector<std::byte> buffer(largest, std::byte{1});
  const std::span<std::byte> target = memory.device().bar(2).memory.bytes();
  const Limit limit{.ratio = 1 / 0.9, .on = Limit::On::kMedian};
  for (const uint64_t size : kCopies) {
    const auto data = std::span(buffer).first(size);
    const auto ours = [&]() -> Result<std::vector<double>> {
      return std::vector{Timed([&] { CHECK(dma.device().memory().Write(kBar.value(), data) == 0); })};
    };
    const auto bare = [&]() -> Result<std::vector<double>> {
      return std::vector{Timed([&] {
        std::memcpy(target.data(), data.data(), size);
        benchmark::ClobberMemory();
      })};
    };
    const std::vector<Pairs> pairs = TRY(Compare(ours, bare, limit, {}));
    const std::string name = fmt::format("p2p_copy/kib:{}", size / kKiB);
    Report(name, "memcpy", pairs[0]);
    if (size >= kGatedCopy) {
      gates.Ratio(name + ", crossbar / memcpy", pairs[0], limit);
    } else {
      gates.Show(name + ", crossbar / memcpy", pairs[0]);
    }
    // From the first register that the driver writes to the completion that it reads.
    std::vector<double> commands;
    for (int i = 0; i < 20; ++i)
      commands.push_back(Timed([&] { CHECK(driver.ToBus(kBar.value(), size) == 0); }));
    Report(fmt::format("p2p_copy_by_command/kib:{}", size / kKiB), commands);
  }
  return {};
}

Result<double> ZapSeconds(unsigned peers) {
  NoSlots slots;
  AddressSpace space(slots);
  Served<MemoryDevice> memory(TRY(MemoryDevice::Create(kMiB)), "memory");
  std::vector<std::unique_ptr<Served<DmaDevice>>> initiators;
  for (unsigned i = 0; i < peers; ++i) {
    initiators.push_back(std::make_unique<Served<DmaDevice>>(WideDma(), "dma"));
    TRY(initiators.back()->backend().JoinBus(space));
  }
  const AddressSpace::Piece piece{{kBar, kMiB}, TRY(memory->MapArea(2, {0, kMiB}))};
  std::vector<double> samples;
  for (int i = 0; i < 100; ++i) {
    AddressSpace::Mapping bar = TRY(space.Map({{piece}, {}}));
    AddressSpace::Mapping* const zapped = &bar;
    samples.push_back(Timed([&] { space.Zap({&zapped, 1}); }));
  }
  Report(fmt::format("zap/peers:{}", peers), samples);
  return Median(samples);
}

Result<> MeasureZap(Gates& gates) {
  std::vector<double> seconds;
  for (const unsigned peers : kPeers) seconds.push_back(TRY(ZapSeconds(peers)));
  gates.AtMost("zap with 16 peers, time a peer / with one", seconds.back() / 16 / seconds.front(), 2);
  return {};
}

// A peer whose server maps nothing and sleeps before it answers an unmap: where such sleeps overlap and where
// they do not makes the same difference on however many CPUs.
class SlowPeer {
 public:
  static Result<std::unique_ptr<SlowPeer>> Create(AddressSpace& space) {
    auto [near, far] = TRY(sys::SocketPair());
    std::unique_ptr<SlowPeer> peer(new SlowPeer(std::move(far)));
    peer->connection_ = TRY(Connection::Create(std::move(near), "slow", {}));
    const vfio_user::Version version = TRY(peer->connection_->Negotiate());
    TRY(peer->connection_->Serve([](const Message&) { return Connection::Answer{ENOTSUP, {}}; }));
    peer->domain_.emplace(*peer->connection_, version, nullptr);
    peer->membership_ = TRY(space.AddDomain(*peer->domain_));
    return peer;
  }
  ~SlowPeer() {
    membership_ = {};
    domain_.reset();
    connection_.reset();
    thread_.join();
  }

  // What its server was sent, of one kind and in all.
  unsigned unmaps() const { return unmaps_; }
  unsigned messages() const { return messages_; }

 private:
  static constexpr std::chrono::milliseconds kAnswer{3};
  static constexpr std::chrono::milliseconds kStall{2000};

  explicit SlowPeer(Fd socket) {
    thread_ = std::thread([this, fd = std::move(socket)]() mutable {
      MessageSocket end(std::move(fd), kStall);
      while (true) {
        const auto message = end.Receive(vfio_user::kMaxMessage, vfio_user::Deadline::max());
        if (!message || !*message) return;
        Answer(end, **message);
      }
    });
  }

  void Answer(MessageSocket& end, const Message& message) {
    ++messages_;
    std::vector<std::byte> body;
    if (message.header.command == static_cast<uint16_t>(Command::kVersion)) {
      body = vfio_user::EncodeVersion(vfio_user::Version());
    } else if (message.header.command == static_cast<uint16_t>(Command::kDmaUnmap)) {
      ++unmaps_;
      body = message.body;
      std::this_thread::sleep_for(kAnswer);
    }
    vfio_user::Header header = message.header;
    header.flags = vfio_user::Header::kReply;
    (void)end.Send(header, body, {}, {}, std::chrono::steady_clock::now() + kStall);
  }

  std::thread thread_;
  std::atomic<unsigned> unmaps_ = 0;
  std::atomic<unsigned> messages_ = 0;
  std::unique_ptr<Connection> connection_;
  std::optional<VfioUserDomain> domain_;
  AddressSpace::DomainHandle membership_;
};

// A BAR and the slow peers that may reach it.
struct SlowMachine {
  NoSlots slots;
  AddressSpace space{slots};
  std::vector<std::unique_ptr<SlowPeer>> peers;

  Result<> Add(unsigned count) {
    while (peers.size() < count) peers.push_back(TRY(SlowPeer::Create(space)));
    return {};
  }
  Result<double> ZapSeconds() {
    Backing registers;
    registers.kind = Backing::Kind::kBar;
    AddressSpace::Mapping bar = TRY(space.Map({{{{kBar, kMiB}, registers}}, {}}));
    AddressSpace::Mapping* const zapped = &bar;
    return Timed([&] { space.Zap({&zapped, 1}); });
  }
};

Result<> CountMessages(SlowMachine& machine, Gates& gates) {
  const auto sum = [&](unsigned (SlowPeer::*of)() const) {
    unsigned total = 0;
    for (const auto& peer : machine.peers) total += (peer.get()->*of)();
    return total;
  };
  const auto count = static_cast<double>(machine.peers.size());
  const unsigned unmaps = sum(&SlowPeer::unmaps);
  const unsigned messages = sum(&SlowPeer::messages);
  TRY(machine.ZapSeconds());
  const std::string name = fmt::format("mapped for and zapped with {} peers, ", count);
  gates.Equal(name + "DMA_UNMAPs", sum(&SlowPeer::unmaps) - unmaps, count);
  gates.Equal(name + "messages", sum(&SlowPeer::messages) - messages, 2 * count);
  return {};
}

Result<> MeasureSlowZap(Gates& gates) {
  SlowMachine one;
  SlowMachine many;
  TRY(one.Add(1));
  TRY(many.Add(kPeers[std::size(kPeers) - 1]));
  const auto sampler = [](SlowMachine& machine) {
    return [&machine]() -> Result<std::vector<double>> { return std::vector{TRY(machine.ZapSeconds())}; };
  };
  const Limit limit{.ratio = 2, .on = Limit::On::kMedian};
  const std::vector<Pairs> pairs = TRY(Compare(sampler(many), sampler(one), limit, {}));
  Report("zap_slow/peers:16", "one", pairs[0]);
  gates.Ratio("zap with 16 slow peers / with one", pairs[0], limit);
  TRY(CountMessages(one, gates));
  return CountMessages(many, gates);
}

Result<> Measure(Gates& gates) {
  TRY(MeasureAccess(gates));
  TRY(MeasureCopies(gates));
  TRY(MeasureZap(gates));
  return MeasureSlowZap(gates);
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  return crossbar::bench::Main(argc, argv,
                               {.needs_kvm = false, .before = crossbar::bench::Measure});
}
