// Servers that answer in time, but late: what waits for them is bounded as a whole, and nobody else pays for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/served.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::IsEmpty;

constexpr uint64_t kTarget = 0x40000000;

// Registers of a server that takes 8 bytes at a time, and its time for each.
struct SlowTarget {
  explicit SlowTarget(milliseconds each)
      : server([this, each](ScriptedServer& self, Message& message) {
          if (Is(message, Command::kVersion)) {
            Version version;
            version.minor = 1;
            version.max_msg_fds = 8;
            version.max_data_xfer_size = 8;
            self.Reply(message, EncodeVersion(version));
            return true;
          }
          if (!Is(message, Command::kRegionWrite)) return false;
          ++writes;
          std::this_thread::sleep_for(each);
          ++done;
          return false;
        }) {}
  std::atomic<unsigned> writes = 0;  // begun
  std::atomic<unsigned> done = 0;
  ScriptedServer server;
};

struct SlowForward : ::testing::Test {
  // `b`, whose registers are at kTarget, is the slow one; `a` begins a transfer of 4 KiB to them, 512 messages.
  void Start(SlowTarget& target, Connection::Limits limits = {}) {
    b = ClientMachine::Connect(target.server.TakeClientEnd(), limits).value();
    owner.emplace(*b);
    a.emplace(WideDma(), "a", DeviceServer::Options{}, limits);
    ASSERT_TRUE((*a)->JoinBus(machine.space));
    ASSERT_TRUE(ClientMachine::SetBusMaster(a->backend()));
    bar = PlaceBar(machine.space, *b, *owner, 0, kTarget);
    driver.emplace(a->backend());
    driver->Start(DmaDevice::kBuffer, kTarget, 0x1000, DmaDevice::kRun | DmaDevice::kToBus);
    while (target.writes == 0) std::this_thread::yield();
  }
  ~SlowForward() override {
    if (a) a->Disconnect();
  }

  ClientMachine machine{milliseconds(1000)};
  std::unique_ptr<VfioUserBackend> b;
  std::optional<BackendOwner> owner;
  std::optional<Served<DmaDevice>> a;
  AddressSpace::Mapping bar;
  std::optional<DmaDriver> driver;
};

TEST_F(SlowForward, G12AZapWaitsForOneMessageOfItOnly) {
  SlowTarget target(milliseconds(20));
  Start(target);
  const auto begun = Clock::now();
  machine.space.Zap(std::array{&bar});
  EXPECT_LT(Clock::now() - begun, milliseconds(500));
  EXPECT_THAT(machine.unsafe, IsEmpty());
  EXPECT_EQ(driver->Finish(), uint64_t{EFAULT});
  EXPECT_LT(target.writes, 100u);
}

TEST_F(SlowForward, G12AllOfItHasTheTimeOfAForward) {
  SlowTarget target(milliseconds(20));
  Connection::Limits limits;
  limits.forward = milliseconds(1000);
  Start(target, limits);
  EXPECT_EQ(driver->Finish(), uint64_t{ETIMEDOUT});
  EXPECT_LT(target.writes, 200u);
  EXPECT_FALSE(ClientMachine::Lost(*b)) << "each of its answers was in time";
  EXPECT_FALSE(ClientMachine::Lost(a->backend()));
}

TEST_F(SlowForward, G12TheEndOfWhoAskedWaitsForOneMessageOnly) {
  SlowTarget target(milliseconds(20));
  Start(target);
  const auto begun = Clock::now();
  a->Disconnect();
  EXPECT_LT(Clock::now() - begun, milliseconds(1000));
}

TEST_F(SlowForward, G8BusMasterOffWaitsForWhatIsUnderWay) {
  SlowTarget target(milliseconds(200));
  Start(target);
  ASSERT_TRUE(ClientMachine::SetBusMaster(a->backend(), false));
  const unsigned writes = target.writes;
  EXPECT_EQ(target.done, writes);
  EXPECT_EQ(driver->Finish(), uint64_t{ENODEV});
  EXPECT_EQ(target.writes, writes);
}

TEST(SlowServer, G12OneThatIsSlowForTooLongIsLost) {
  Connection::Limits limits;
  limits.reply = milliseconds(2000);
  limits.slow = milliseconds(1000);
  for (const auto each : {milliseconds(250), milliseconds(5)}) {
    ScriptedServer server([&](ScriptedServer&, Message& message) {
      if (Is(message, Command::kRegionRead)) std::this_thread::sleep_for(each);
      return false;
    });
    const auto backend = ClientMachine::Connect(server.TakeClientEnd(), limits).value();
    std::array<std::byte, 4> word{};
    unsigned done = 0;
    while (done < 20 && backend->Read(0, 0, word)) ++done;
    const bool slow = each == milliseconds(250);
    EXPECT_GT(done, 1u);
    EXPECT_EQ(done < 20, slow);
    EXPECT_EQ(ClientMachine::Lost(*backend), slow);
  }
}

TEST(SlowServer, WhatManyWaitForAtOnceCountsOnce) {
  Connection::Limits limits;
  limits.reply = milliseconds(2000);
  limits.slow = milliseconds(1000);
  std::atomic<bool> paused = false;
  ScriptedServer server([&](ScriptedServer&, Message& message) {
    if (Is(message, Command::kRegionRead) && !paused.exchange(true)) std::this_thread::sleep_for(milliseconds(400));
    return false;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd(), limits).value();
  {
    std::vector<std::jthread> readers;
    for (int i = 0; i < 8; ++i) {
      readers.emplace_back([&] {
        std::array<std::byte, 4> word{};
        EXPECT_TRUE(backend->Read(0, 0, word));
      });
    }
  }
  EXPECT_FALSE(ClientMachine::Lost(*backend));
}

// More pieces than unmaps are sent at once.
AddressSpace::Mapping MapMany(ClientMachine& machine) {
  AddressSpace::Placement placement;
  for (uint64_t i = 0; i < 200; ++i)
    placement.pieces.push_back(ClientMachine::Peer(kTarget + i * 0x2000, 0x1000, &machine.registers));
  return machine.space.Map(std::move(placement)).value();
}

TEST(SlowServer, UnmapsWaitForItAsLongAsTheZapMay) {
  ClientMachine machine;
  std::atomic<unsigned> unmaps = 0;
  ScriptedServer server([&](ScriptedServer&, Message& message) {
    if (Is(message, Command::kDmaUnmap) && unmaps++ == 0) std::this_thread::sleep_for(milliseconds(600));
    return false;
  });
  const auto backend = ClientMachine::Connect(server.TakeClientEnd()).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  AddressSpace::Mapping bar = MapMany(machine);
  machine.space.Zap(std::array{&bar});
  EXPECT_EQ(unmaps, 200u);
  EXPECT_FALSE(ClientMachine::Lost(*backend));
  EXPECT_THAT(machine.unsafe, IsEmpty());
}

TEST(SlowServer, UnmapsOfOthersDoNotPayForOneThatIsSilent) {
  ClientMachine machine(milliseconds(300));
  ScriptedServer silent(
      [](ScriptedServer&, Message& message) { return Is(message, Command::kDmaUnmap); });
  std::atomic<unsigned> unmaps = 0;
  ScriptedServer prompt([&](ScriptedServer&, Message& message) {
    unmaps += Is(message, Command::kDmaUnmap) ? 1 : 0;
    return false;
  });
  const auto first = ClientMachine::Connect(silent.TakeClientEnd()).value();
  const auto second = ClientMachine::Connect(prompt.TakeClientEnd()).value();
  ASSERT_TRUE(first->JoinBus(machine.space));
  ASSERT_TRUE(second->JoinBus(machine.space));
  AddressSpace::Mapping bar = MapMany(machine);
  machine.space.Zap(std::array{&bar});
  EXPECT_TRUE(ClientMachine::Lost(*first));
  EXPECT_FALSE(ClientMachine::Lost(*second));
  EXPECT_EQ(unmaps, 200u);
}

}  // namespace
}  // namespace crossbar::vfio_user
