// `crossbar serve` as its users and the VMM use it: options, and servers in processes of their own.
#include "vmm/serve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/sys_process.h"
#include "base/sys_socket.h"
#include "devices/vfio_user/child_server.h"
#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/served.h"

namespace crossbar {
namespace {

using namespace vfio_user::testing;  // NOLINT: the words of these tests
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using vfio_user::ChildServer;
using vfio_user::VfioUserBackend;

TEST(ServeOptions, AreReadAndChecked) {
  const ServeOptions options =
      ParseServeOptions({"dma", "--socket", "/s", "--buffer", "1M", "--address-bits", "64",
                         "--channels", "4", "--msix", "--flr", "pcie"})
          .value();
  EXPECT_EQ(options.model, "dma");
  EXPECT_EQ(options.socket, "/s");
  EXPECT_EQ(options.dma.buffer_size, kMiB);
  EXPECT_EQ(options.dma.channels, 4u);
  EXPECT_TRUE(options.dma.msix);
  EXPECT_EQ(options.dma.reset, vfio_user::DmaDevice::FunctionReset::kPcie);
  EXPECT_EQ(ParseServeOptions({"memory", "--socket", "/s"})->size, 16 * kMiB);
  EXPECT_EQ(ParseServeOptions({"memory", "--socket", "/s", "--flr", "af"})->reset,
            vfio_user::ServedDevice::FunctionReset::kAf);
  EXPECT_TRUE(ParseServeOptions({"--help"})->help);
  EXPECT_TRUE(ParseServeOptions({"memory", "--help"})->help);
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {},
           {"disk", "--socket", "/s"},
           {"memory"},
           {"memory", "--socket", "/s", "--socket-fd", "3"},
           {"memory", "--socket", "/s", "--size", "x"},
           {"memory", "--socket", "/s", "--size", "3M"},
           {"memory", "--socket", "/s", "--size", "2T"},
           {"dma", "--socket", "/s", "--channels", "0"},
           {"dma", "--socket", "/s", "--channels", "-1"},
           {"dma", "--socket", "/s", "--address-bits", "65"},
           {"dma", "--socket", "/s", "--buffer", "2G"},
           {"dma", "--socket", "/s", "--flr", "none"},
           {"dma", "--socket", "/s", "extra"}}) {
    EXPECT_FALSE(ParseServeOptions(wrong)) << ::testing::PrintToString(wrong);
  }
  EXPECT_THAT(ServeHelp(), HasSubstr("Examples:"));
}

TEST(ServeOptions, AnInheritedSocketMustBeOne) {
  const Fd file = sys::MemfdCreate("no socket", 0).value();
  for (const int fd : {9999, file.get()}) {
    const ServeOptions options =
        ParseServeOptions({"memory", "--socket-fd", std::to_string(fd)}).value();
    EXPECT_THAT(CheckSocket(options).error().message(), HasSubstr("no UNIX stream socket"));
  }
  EXPECT_TRUE(sys::FileSize(file.get())) << "it was closed";
}

ChildServer::Options Child(std::vector<std::string> arguments) {
  ChildServer::Options options;
  options.name = "model=" + arguments.front();
  options.arguments = std::move(arguments);
  options.program = CROSSBAR_PROGRAM;
  return options;
}

bool IsGone(pid_t process) { return !sys::Kill(process, 0); }

TEST(ChildServer, CarriesTheMainJobInProcessesOfItsOwn) {
  const size_t before = OpenDescriptors();
  {
    ClientMachine machine;
    const auto memory =
        ChildServer::StartBackend(Child({"memory", "--size", "1M"})).value();
    const auto dma = ChildServer::StartBackend(Child({"dma", "--address-bits", "64"})).value();
    EXPECT_EQ(dma->name(), "model=dma");
    ASSERT_TRUE(dma->JoinBus(machine.space));
    AddressSpace::Piece piece = ClientMachine::Peer(0x40000000, kMiB, &machine.registers);
    const Backing mapped = memory->MapArea(2, memory->region(2).mappable.at(0)).value();
    piece.backing.host = mapped.host;
    piece.backing.file = mapped.file;
    AddressSpace::Mapping bar = machine.space.Map({{piece}, {}}).value();
    ASSERT_TRUE(ClientMachine::SetBusMaster(*dma));
    machine.ram.Fill(0x5c);
    DmaDriver driver(*dma);
    ASSERT_EQ(driver.FromBus(ClientMachine::kRam, 4096), 0u);
    ASSERT_EQ(driver.ToBus(0x40000000 + 0x7000, 4096), 0u);
    EXPECT_EQ(std::memcmp(mapped.host.pointer() + 0x7000, machine.ram.bytes().data(), 4096), 0);
    machine.space.Zap(std::array{&bar});
    EXPECT_EQ(driver.ToBus(0x40000000, 16), uint64_t{EFAULT});
  }
  EXPECT_EQ(SettledDescriptors(before), before);
}

TEST(ChildServer, G7OneThatHangsIsKilledAndReapedBeforeTheZapEnds) {
  ClientMachine machine(std::chrono::milliseconds(400));
  Fd socket;
  const auto child = ChildServer::Start(Child({"dma"}), socket).value();
  const auto backend = ClientMachine::Connect(std::move(socket), {}, child).value();
  ASSERT_TRUE(backend->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_TRUE(sys::Kill(child->pid(), SIGSTOP));
  machine.ZapPeers();
  EXPECT_TRUE(IsGone(child->pid())) << "it may still reach the BAR, or is a zombie";
  EXPECT_THAT(machine.unsafe, IsEmpty());
  EXPECT_THAT(machine.space.Peers().cells, IsEmpty());
  EXPECT_TRUE(ClientMachine::Lost(*backend));
}

TEST(ChildServer, OneThatDiesIsNoticed) {
  Fd socket;
  const auto child = ChildServer::Start(Child({"memory", "--size", "64K"}), socket).value();
  const auto backend = ClientMachine::Connect(std::move(socket), {}, child).value();
  ASSERT_TRUE(sys::Kill(child->pid(), SIGKILL));
  pollfd poll{backend->lost_event(), POLLIN, 0};
  EXPECT_EQ(sys::Poll({&poll, 1}, 3000), 1);
}

TEST(ChildServer, EndsWithItsOwnerAndInheritsNothingElse) {
  Fd socket;
  auto child = ChildServer::Start(Child({"memory", "--size", "64K"}), socket).value();
  const pid_t pid = child->pid();
  {
    const auto backend = ClientMachine::Connect(std::move(socket)).value();
    // What whoever started us left open for all.
    size_t inherited = 0;
    for (int fd = 3; fd < 256; ++fd) {
      const int flags = ::fcntl(fd, F_GETFD);
      if (flags >= 0 && (flags & FD_CLOEXEC) == 0) ++inherited;
    }
    std::vector<std::string> open;
    const auto folder = fmt::format("/proc/{}/fd", pid);
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      open.push_back(std::filesystem::read_symlink(entry).string());
    }
    // Standard descriptors, its two sockets, its BAR, and no more.
    EXPECT_LE(open.size(), 6u + inherited) << ::testing::PrintToString(open);
  }
  // The socket's end ends it, without a signal.
  for (int i = 0; i < 300 && !IsGone(pid); ++i) {
    std::ifstream stat(fmt::format("/proc/{}/stat", pid));
    std::string text;
    std::getline(stat, text);
    if (text.find(") Z ") != std::string::npos) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(sys::TryReap(pid).value());
  child.reset();
}

TEST(ChildServer, StartingWhatDoesNotStartIsOneClearError) {
  ChildServer::Options missing = Child({"dma"});
  missing.program = "/nonexistent/crossbar";
  EXPECT_THAT(ChildServer::StartBackend(missing).error().ToString(),
              HasSubstr("cannot start the server of model=dma"));
  const auto refused = ChildServer::StartBackend(Child({"memory", "--size", "5"}));
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().ToString(), HasSubstr("it hung up"));
}

TEST(Serve, ListensForOneClientAfterTheOther) {
  const std::string path = ::testing::TempDir() + fmt::format("crossbar-serve-{}", ::getpid());
  const std::vector<std::string> arguments = {"crossbar", "serve",  "memory", "--socket",
                                              path,       "--size", "64K"};
  const pid_t pid = sys::Spawn(CROSSBAR_PROGRAM, arguments, {}).value();
  for (int client = 0; client < 2; ++client) {
    Result<std::unique_ptr<VfioUserBackend>> backend = Fail("not tried");
    for (int i = 0; i < 500 && !backend; ++i) {
      backend = VfioUserBackend::Connect(path);
      if (!backend) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_TRUE(backend) << backend.error().message();
    std::array<std::byte, 4> word{};
    // Its state outlives its clients.
    ASSERT_TRUE((*backend)->Read(2, 0, word));
    EXPECT_EQ(word[0], std::byte(client == 0 ? 0 : 0x77));
    word[0] = std::byte{0x77};
    ASSERT_TRUE((*backend)->Write(2, 0, word));
  }
  ASSERT_TRUE(sys::Kill(pid, SIGTERM));
  for (int i = 0; i < 500 && !sys::TryReap(pid).value_or(true); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_FALSE(std::filesystem::exists(path)) << "it left its socket behind";
}

}  // namespace
}  // namespace crossbar
