// G12 for a device in use, as the guest has it: whatever its server does, it is lost as any device is lost. It
// reads all ones, what it had placed is gone, a line says why, and the rest of the machine goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <linux/pci_regs.h>

#include <cstring>
#include <ostream>
#include <tuple>
#include <vector>

#include "devices/vfio_user/testing/device_machine.h"
#include "devices/vfio_user/testing/misdeeds.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What goes on when the server misbehaves; nothing: it does so unasked.
struct Occasion {
  const char* name;
  Command at;
  void (*go_on)(DeviceMachine&);
};
constexpr Occasion kOccasions[] = {
    {"Read", Command::kRegionRead, [](DeviceMachine& m) { (void)m.ReadRegister(); }},
    {"Write", Command::kRegionWrite, [](DeviceMachine& m) { m.window->Write(0x10, 4, 1); }},
    {"DecodeOff", Command::kRegionWrite,
     [](DeviceMachine& m) { m.function->WriteConfig(PCI_COMMAND, 2, 0); }},
    {"MachineReset", Command::kReset, [](DeviceMachine& m) { m.function->Reset(); }},
    {"PeersAppear", Command::kDmaMap,
     [](DeviceMachine& m) { EXPECT_TRUE(m.ZapPeers() && m.MapPeers()); }},
    {"PeersLeave", Command::kDmaUnmap, [](DeviceMachine& m) { EXPECT_TRUE(m.ZapPeers()); }},
    {"Unasked", Command{0}, nullptr},
};

struct Deed {
  const char* name;
  void (*run)(ScriptedServer&, Message&);
};
constexpr Deed kDeeds[] = {
    {"Never", Never},
    {"Closes", Closes},
    {"Twice", Twice},
    {"WrongId", WrongId},
    {"WrongCommand", WrongCommand},
    {"Descriptors", WithDescriptors},
    {"Late", Late},
    {"Garbage", Garbage},
    {"Half", HalfHeader},
    {"Long", [](ScriptedServer& server, Message& message) { AnswersBytes(0x8000)(server, message); }},
    {"Huge", [](ScriptedServer& server, Message& message) { SizedHeader(~0u)(server, message); }},
    {"Flood", Flood},
};
std::ostream& operator<<(std::ostream& out, const Occasion& one) { return out << one.name; }
std::ostream& operator<<(std::ostream& out, const Deed& one) { return out << one.name; }

std::vector<std::tuple<Occasion, Deed, bool>> AllCases() {
  std::vector<std::tuple<Occasion, Deed, bool>> all;
  for (const Occasion& occasion : kOccasions) {
    for (const Deed& deed : kDeeds) {
      // Unasked there is nothing to leave unanswered.
      if (occasion.go_on == nullptr && (deed.run == Never || deed.run == Late)) continue;
      for (const bool twin : {false, true}) all.emplace_back(occasion, deed, twin);
    }
  }
  return all;
}

class HostileDevice : public ::testing::TestWithParam<std::tuple<Occasion, Deed, bool>> {};

TEST_P(HostileDevice, G12IsLostAsAnyDeviceIsLost) {
  const auto& [occasion, deed, twin] = GetParam();
  DeviceMachine machine;
  machine.ram.Fill(0x11);
  machine.peer.Fill(0x22);
  std::atomic<bool> hostile = false;
  ScriptedServer server(
      [&](ScriptedServer& self, Message& message) {
        if (message.header.command != static_cast<uint16_t>(occasion.at) || !hostile.exchange(false))
          return false;
        deed.run(self, message);
        return true;
      },
      twin);
  ASSERT_TRUE(machine.Start(server.TakeClientEnd(), kHostileLimits));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_EQ(machine.slots.Slots().size(), 3u) << "RAM, the device's memory, the peer's";
  ::testing::internal::CaptureStderr();
  hostile = true;
  if (occasion.go_on != nullptr) {
    occasion.go_on(machine);
  } else {
    Message nothing;
    deed.run(server, nothing);
  }
  (void)machine.ReadRegister();  // where a twin carries the server's commands, whoever asks finds out
  machine.Watch();
  const std::string log = ::testing::internal::GetCapturedStderr();

  EXPECT_THAT(log, HasSubstr("test: the device is lost: "));
  EXPECT_THAT(log, HasSubstr("the guest has lost it"));
  EXPECT_TRUE(machine.function->lost());
  EXPECT_EQ(machine.function->ReadConfig(PCI_VENDOR_ID, 4), 0xffffffffu);
  EXPECT_EQ(machine.ReadRegister(), 0xffffffffu);
  EXPECT_EQ(machine.ReadMemory(), 0xffffffffu);
  EXPECT_EQ(machine.ZappedPieces(), 2u) << "the zap has not run";
  EXPECT_THAT(machine.unsafe, IsEmpty()) << "the VM would have stopped";
  EXPECT_EQ(machine.ram.at(0), 0x11);
  EXPECT_EQ(machine.peer.at(0), 0x22);
  // The rest goes on.
  EXPECT_TRUE(machine.ZapPeers());
  EXPECT_EQ(machine.slots.Slots().size(), 1u) << "only RAM is left";
  EXPECT_TRUE(machine.MapPeers());
  EXPECT_TRUE(machine.ZapPeers());
}

INSTANTIATE_TEST_SUITE_P(All, HostileDevice, ::testing::ValuesIn(AllCases()),
                         [](const auto& one) {
                           return std::string(std::get<0>(one.param).name) +
                                  std::get<1>(one.param).name +
                                  (std::get<2>(one.param) ? "WithTwin" : "");
                         });

// Does `deed` to every read of a region while `hostile`.
auto ToReads(const Misdeed& deed, const std::atomic<bool>& hostile) {
  return [&](ScriptedServer& self, Message& message) {
    if (!hostile || message.header.command != static_cast<uint16_t>(Command::kRegionRead))
      return false;
    deed(self, message);
    return true;
  };
}

// What its server refuses is an access that fails, not a device that does.
TEST(HostileDeviceLives, G12AndReadsAllOnesWhereAnAccessFails) {
  for (const Misdeed& deed : {Misdeed(Refuses), Misdeed(RefusesWithoutReason)}) {
    std::atomic<bool> hostile = false;
    ScriptedServer server(ToReads(deed, hostile));
    DeviceMachine machine;
    ASSERT_TRUE(machine.Start(server.TakeClientEnd(), kHostileLimits));
    EXPECT_EQ(machine.ReadRegister(), 0u);
    hostile = true;
    EXPECT_EQ(machine.ReadRegister(), 0xffffffffu);
    hostile = false;
    EXPECT_EQ(machine.ReadRegister(), 0u);
    EXPECT_FALSE(machine.function->lost());
  }
}

// An answer that is short, or to another access, is none to believe anything after.
TEST(HostileDeviceDies, G12WhereAnAnswerIsToAnotherAccess) {
  const auto as_is = [](RegionAccess&) {};
  const auto behind = [](RegionAccess& access) { access.offset += 4; };
  for (const Misdeed& deed : {AnswersBytes(0), AnswersBytes(5), EchoesAccess(as_is, 0),
                              EchoesAccess(as_is, 3), EchoesAccess(behind, 4)}) {
    std::atomic<bool> hostile = false;
    ScriptedServer server(ToReads(deed, hostile));
    DeviceMachine machine;
    ASSERT_TRUE(machine.Start(server.TakeClientEnd(), kHostileLimits));
    ::testing::internal::CaptureStderr();
    hostile = true;
    EXPECT_EQ(machine.ReadRegister(), 0xffffffffu);
    machine.Watch();
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                HasSubstr("the device is lost: a wrong answer to an access to region 0 at 0x10+0x4"));
    EXPECT_TRUE(machine.function->lost());
    EXPECT_THAT(machine.unsafe, IsEmpty());
  }
}

// It truncates its file, or punches what it held out of it, behind the BAR that is mapped.
TEST(HostileDeviceLives, G12AFileCutShortIsNoFault) {
  for (const bool sealed : {true, false}) {
    const SharedMemory memory(ScriptedServer::kMemory, sealed);
    ScriptedServer server([&](ScriptedServer& self, Message& message) {
      if (message.header.command != static_cast<uint16_t>(Command::kGetRegionInfo)) return false;
      const RegionInfo info = self.InfoOn(message);
      self.Reply(message, Bytes(info), info.index == 2 ? std::vector{memory.fd.get()} : std::vector<int>());
      return true;
    });
    DeviceMachine machine;
    ASSERT_TRUE(machine.Start(server.TakeClientEnd(), kHostileLimits));
    const auto piece = machine.space.Find(Gpa(machine.window->start() + DeviceMachine::kMemoryAt));
    ASSERT_TRUE(piece);
    const Hva host = piece->backing.host;
    EXPECT_EQ(host != Hva(), sealed) << "mapped what can shrink";
    EXPECT_EQ(sys::Ftruncate(memory.fd.get(), 0).has_value(), !sealed);
    EXPECT_EQ(machine.ReadMemory(), 0u) << "not by message";
    if (!sealed) continue;
    std::memset(host.pointer(), 0x5a, kPageSize);
    ASSERT_TRUE(sys::Fallocate(memory.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                               ScriptedServer::kMemory));
    EXPECT_EQ(*host.pointer(), std::byte{0}) << "a page of zeros";
  }
}

// The server dies at each message of a device's life: before its answer, after it, or in the middle.
TEST(HostileDeviceLives, G12WhateverMessageItDiesAt) {
  enum class How { kBefore, kWithin, kAfter };
  for (const auto& [how, twin] : {std::pair{How::kBefore, false}, {How::kBefore, true},
                                  {How::kWithin, false}, {How::kWithin, true},
                                  {How::kAfter, false}, {How::kAfter, true}}) {
    int last = 0;
    for (bool died = true; died; ++last) {
      died = false;
      const size_t before = OpenDescriptors();
      {
        int left = last;
        DeviceMachine machine;
        ScriptedServer server(
            [&](ScriptedServer& self, Message& message) {
              if (left-- != 0) return false;
              died = true;
              if (how == How::kWithin) HalfHeader(self, message);
              if (how == How::kAfter) self.Behave(message);
              self.Die();
              return true;
            },
            twin);
        if (machine.Start(server.TakeClientEnd(), kHostileLimits)) {
          (void)machine.MapPeers();
          (void)machine.ReadRegister();
          (void)machine.ZapPeers();
          machine.function->Reset();
        }
        if (machine.function != nullptr) machine.function->Close();
        EXPECT_THAT(machine.unsafe, IsEmpty()) << last;
        EXPECT_EQ(machine.slots.Slots().size(), 1u) << last;
      }
      EXPECT_EQ(SettledDescriptors(before), before) << last;
    }
    EXPECT_GT(last, 30) << "it was not asked much";
  }
}

}  // namespace
}  // namespace crossbar::vfio_user
