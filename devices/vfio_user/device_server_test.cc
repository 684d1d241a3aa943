// G12 for our own servers: whatever a client sends, its server answers, ends with it, and serves the next.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <linux/pci_regs.h>
#include <sys/stat.h>

#include <future>

#include "devices/vfio_user/device_server.h"
#include "devices/vfio_user/dma_device.h"
#include "devices/vfio_user/memory_device.h"
#include "devices/vfio_user/testing/hanging_file.h"
#include "devices/vfio_user/testing/misdeeds.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::IsEmpty;

// A server in a thread, and a client that says what a test makes it say.
class Session {
 public:
  explicit Session(std::unique_ptr<ServedDevice> device, uint32_t max_fds = 8,
                   std::optional<uint64_t> most_maps = std::nullopt)
      : device_(std::move(device)), server_(*device_) {
    auto ends = sys::SocketPair().value();
    thread_ = std::thread(
        [this, end = std::move(ends.second)]() mutable { (void)server_.Serve(std::move(end)); });
    client_ = std::make_unique<MessageSocket>(std::move(ends.first), milliseconds(2000));
    Version version;
    version.max_msg_fds = max_fds;
    version.max_dma_maps = most_maps;
    const auto reply = Ask(Command::kVersion, EncodeVersion(version));
    EXPECT_TRUE(reply);
    if (reply) server_version_ = ParseVersion(reply->body).value();
  }
  ~Session() {
    client_.reset();
    thread_.join();
  }

  std::optional<Message> Ask(Command command, std::span<const std::byte> body,
                             std::vector<int> fds = {}) {
    Header header;
    header.command = static_cast<uint16_t>(command);
    const auto deadline = Clock::now() + milliseconds(3000);
    if (!client_->Send(header, body, {}, fds, deadline)) return std::nullopt;
    auto reply = client_->Receive(kMaxMessage, deadline);
    EXPECT_TRUE(reply && *reply) << "no answer to " << CommandName(header.command);
    if (!reply || !*reply) return std::nullopt;
    return std::move(**reply);
  }
  // The errno of the answer, 0 where it is none.
  uint32_t ErrorOf(Command command, std::span<const std::byte> body, std::vector<int> fds = {}) {
    const auto reply = Ask(command, body, std::move(fds));
    return reply ? reply->header.error : ~0u;
  }
  // No answer is waited for, and whether there is still a server does not matter.
  void Tell(Command command, std::span<const std::byte> body, std::vector<int> fds) {
    Header header;
    header.command = static_cast<uint16_t>(command);
    (void)client_->Send(header, body, {}, fds, Clock::now() + milliseconds(3000));
  }
  bool HangsUp() {
    const auto deadline = Clock::now() + milliseconds(3000);
    auto reply = client_->Receive(kMaxMessage, deadline);
    while (reply && *reply) reply = client_->Receive(kMaxMessage, deadline);
    return !reply && reply.error().code() == EPIPE;
  }
  // Whether a message with that comes, whatever else comes before it.
  bool Hears(Command command) {
    const auto deadline = Clock::now() + milliseconds(3000);
    while (true) {
      const auto message = client_->Receive(kMaxMessage, deadline);
      if (!message || !*message) return false;
      if ((*message)->header.command == static_cast<uint16_t>(command)) return true;
    }
  }
  ServedDevice& device() { return *device_; }
  const Version& server_version() const { return server_version_; }

 private:
  Version server_version_;
  const std::unique_ptr<ServedDevice> device_;
  DeviceServer server_;
  std::thread thread_;
  std::unique_ptr<MessageSocket> client_;
};

DmaMapRequest MapAt(uint64_t address, uint64_t size) {
  DmaMapRequest map;
  map.flags = DmaMapRequest::kRead | DmaMapRequest::kWrite;
  map.address = address;
  map.size = size;
  return map;
}
ByteVector Writing(uint32_t region, uint64_t offset, uint64_t value, uint32_t size) {
  const RegionAccess access{offset, region, size};
  return Join({Bytes(access), Bytes(value).first(size)});
}
constexpr uint64_t kAddress = 0x100000;
// All that a transfer of `count` bytes to kAddress needs, and then its start, or not.
std::vector<ByteVector> TransferToBus(uint64_t count, uint32_t start = DmaDevice::kRun) {
  return {Writing(7, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2),
          Writing(0, 0x80, DmaDevice::kBuffer, 8), Writing(0, 0x88, kAddress, 8),
          Writing(0, 0x90, count, 8), Writing(0, 0x98, DmaDevice::kToBus | start, 4)};
}

SetIrqs SetOne(uint32_t flags) {
  SetIrqs irqs;
  irqs.flags = flags;
  irqs.index = VFIO_PCI_MSI_IRQ_INDEX;
  irqs.count = 1;
  return irqs;
}

bool Settled(unsigned closes) {
  for (int i = 0; i < 3000 && HangingCloses() != closes; ++i) std::this_thread::sleep_for(milliseconds(1));
  return HangingCloses() == closes;
}

// A session ends at the first such file, wherever it comes, so that it leaves one thread and not many.
TEST(VfioUserServer, G12AFileThatHangsHoldsUpNobody) {
  auto file = HangingFile::Make();
  if (!file) GTEST_SKIP() << file.error().message();
  const int fd = (*file)->fd();
  const SharedMemory memory(0x1000);
  ASSERT_TRUE(Settled(0));
  const auto begun = Clock::now();
  const DmaMapRequest map = MapAt(0x1000, 0x1000);
  const SetIrqs events = SetOne(SetIrqs::kDataEventfd | SetIrqs::kTrigger);
  unsigned sessions = 0;
  for (const auto& [command, body, fds] :
       {std::tuple{Command::kDmaMap, Join({Bytes(map)}), std::vector{fd}},
        std::tuple{Command::kDmaMap, Join({Bytes(map)}), std::vector{memory.fd.get(), fd}},
        std::tuple{Command::kSetIrqs, Join({Bytes(events)}), std::vector{fd}},
        std::tuple{Command::kReset, ByteVector(), std::vector{fd, fd}}}) {
    Session session(DmaDevice::Create({}).value());
    for (int i = 0; i < 50; ++i) session.Tell(command, body, fds);
    EXPECT_TRUE(session.HangsUp());
    ASSERT_LE(HangingCloses(), ++sessions);
  }
  Session next(DmaDevice::Create({}).value());
  EXPECT_EQ(next.ErrorOf(Command::kDmaMap, Bytes(map), {memory.fd.get()}), 0u);
  EXPECT_LT(Clock::now() - begun, milliseconds(3000));
  EXPECT_THAT((*file)->asked(), IsEmpty());
  file->reset();
  EXPECT_TRUE(Settled(0));
}

TEST(VfioUserServer, G12FilesThatHangInManySessionsArePutAnEndTo) {
  auto file = HangingFile::Make();
  if (!file) GTEST_SKIP() << file.error().message();
  const SharedMemory memory(0x1000);
  const DmaMapRequest map = MapAt(0x1000, 0x1000);
  ASSERT_TRUE(Settled(0));
  for (unsigned i = 0; i < 2 * DeviceServer::kMaxHangingCloses; ++i) {
    Session session(DmaDevice::Create({}).value());
    session.Tell(Command::kReset, {}, {(*file)->fd()});
    ASSERT_TRUE(session.HangsUp());
  }
  EXPECT_EQ(HangingCloses(), DeviceServer::kMaxHangingCloses);
  {
    Session without(DmaDevice::Create({}).value());
    EXPECT_EQ(without.ErrorOf(Command::kDmaMap, Bytes(map)), 0u);
    without.Tell(Command::kDmaMap, Bytes(map), {memory.fd.get()});
    EXPECT_TRUE(without.HangsUp());
  }
  file->reset();
  ASSERT_TRUE(Settled(0));
  Session with(DmaDevice::Create({}).value());
  EXPECT_EQ(with.ErrorOf(Command::kDmaMap, Bytes(map), {memory.fd.get()}), 0u);
}

// Whoever is told that a device masters the bus no more may use the memory for something else.
TEST(VfioUserServer, NoDmaOutlastsTheAnswerThatItHasEnded) {
  constexpr uint64_t kSize = 16 * kMiB;
  Session session(DmaDevice::Create({.buffer_size = kSize, .address_bits = 64}).value());
  // Not sealed, and without pages: the slowest there is, and what is written shows in its size.
  const SharedMemory memory(kSize, false);
  const auto written = [&] {
    struct stat status {};
    return ::fstat(memory.fd.get(), &status) == 0 ? static_cast<uint64_t>(status.st_blocks) * 512 : 0;
  };
  ASSERT_EQ(session.ErrorOf(Command::kDmaMap, Bytes(MapAt(kAddress, kSize)), {memory.fd.get()}), 0u);
  unsigned cut_short = 0;
  for (int round = 0; round < 40; ++round) {
    ASSERT_TRUE(sys::Fallocate(memory.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSize));
    for (const ByteVector& write : TransferToBus(kSize))
      ASSERT_EQ(session.ErrorOf(Command::kRegionWrite, write), 0u);
    const auto deadline = Clock::now() + milliseconds(3000);
    while (written() == 0 && Clock::now() < deadline) {
    }
    const uint32_t error = round % 2 == 0
                               ? session.ErrorOf(Command::kRegionWrite, Writing(7, PCI_COMMAND, 0, 2))
                               : session.ErrorOf(Command::kReset, {});
    const uint64_t then = written();
    ASSERT_EQ(error, 0u);
    std::this_thread::sleep_for(milliseconds(3));
    ASSERT_EQ(written(), then) << "round " << round;
    cut_short += then != kSize ? 1 : 0;
  }
  EXPECT_GT(cut_short, 0u) << "no transfer was under way";
}

// Whoever is asked for its memory by message may never answer, and the server's thread may be who reads it.
TEST(VfioUserServer, WhoDoesNotAnswerItsDmaHoldsUpNoEndOfIt) {
  Session session(DmaDevice::Create({.address_bits = 64}).value());
  ASSERT_EQ(session.ErrorOf(Command::kDmaMap, Bytes(MapAt(kAddress, 0x1000))), 0u);
  for (const ByteVector& write : TransferToBus(0x1000)) session.Tell(Command::kRegionWrite, write, {});
  EXPECT_TRUE(session.Hears(Command::kDmaWrite));
  session.Tell(Command::kReset, {}, {});
  EXPECT_TRUE(session.Hears(Command::kReset));
}

// The channel's thread is still to wake up when the reset comes and all is written that a transfer needs.
TEST(VfioUserServer, WhatWasStartedBeforeAResetStartsNothingAfterIt) {
  const auto device = DmaDevice::Create({.address_bits = 64, .channels = 2}).value();
  const SharedMemory memory(0x1000);
  ASSERT_EQ(device->memory().Map(MapAt(kAddress, 0x1000), memory.fd.get()), 0u);
  memory.map.bytes()[0] = std::byte{0x5a};
  const Fd doorbell(::dup(device->Doorbells(0).front().eventfd));
  for (int round = 0; round < 99; ++round) {
    device->Reset();
    const uint32_t run = DmaDevice::kRun;
    const uint64_t rings = DmaDevice::kChannels + 0x20;
    if (round % 3 == 0) device->Write(0, 0x98, Bytes(run));
    if (round % 3 == 1) device->Write(0, rings, Bytes(run));
    if (round % 3 == 2) (void)sys::SignalEvent(doorbell);
    device->Reset();
    for (const ByteVector& write : TransferToBus(8, 0)) {
      const auto access = Decode<RegionAccess>(write).value();
      device->Write(access.region, access.offset, std::span(write).subspan(sizeof access));
    }
    std::this_thread::sleep_for(milliseconds(1));
    ASSERT_EQ(memory.at(0), 0x5a) << "round " << round;
  }
}

// The ring that ends a channel's thread may come while it takes another.
TEST(VfioUserServer, AChannelThatIsRungAtItsEndEnds) {
  const auto ended = std::make_shared<std::promise<void>>();
  std::thread ends([ended] {
    for (int i = 0; i < 1000; ++i) {
      const auto device = DmaDevice::Create({.channels = 8}).value();
      std::this_thread::sleep_for(std::chrono::microseconds(100));  // until they wait
      for (uint64_t channel = 0; channel < 8; ++channel)
        device->Write(0, DmaDevice::kChannels + channel * DmaDevice::kChannelSize + 0x20,
                      Bytes(DmaDevice::kRun));
      const auto until = Clock::now() + std::chrono::microseconds(i % 30);
      while (Clock::now() < until) {
      }
    }
    ended->set_value();
  });
  const bool in_time = ended->get_future().wait_for(std::chrono::seconds(60)) == std::future_status::ready;
  EXPECT_TRUE(in_time);
  in_time ? ends.join() : ends.detach();
}

// The client shares the file: it can fill the counter, and have writers wait, at any time.
TEST(VfioUserServer, G12AnEventfdThatIsFullHoldsUpNobody) {
  const Fd event = sys::EventFd().value();
  const uint64_t full = ~uint64_t{0} - 1;
  ASSERT_TRUE(sys::Write(event.get(), Bytes(full)));
  std::atomic<bool> end = false;
  std::thread meddles([&] {
    for (int i = 0; !end; ++i) ::fcntl(event.get(), F_SETFL, O_RDWR | (i % 2 != 0 ? O_NONBLOCK : 0));
    (void)sys::DrainEvent(event);  // which ends a wait
  });
  {
    Session session(DmaDevice::Create({}).value());
    const SetIrqs set = SetOne(SetIrqs::kDataEventfd | SetIrqs::kTrigger);
    const SetIrqs trigger = SetOne(SetIrqs::kDataNone | SetIrqs::kTrigger);
    EXPECT_EQ(session.ErrorOf(Command::kSetIrqs, Bytes(set), {event.get()}), 0u);
    bool answered = true;
    for (int i = 0; answered && i < 200; ++i) {
      answered = session.ErrorOf(Command::kSetIrqs, Bytes(trigger)) == 0 &&
                 session.ErrorOf(Command::kRegionWrite, Writing(0, 0x60, 1, 4)) == 0;
    }
    EXPECT_TRUE(answered);
    end = true;
    meddles.join();
  }
  Session next(DmaDevice::Create({}).value());
  EXPECT_EQ(next.ErrorOf(Command::kReset, {}), 0u);
}

// Sealed, and yet its pages can go: the client punches one out while the pool has no other.
TEST(VfioUserServer, G12HugePagesThatAreGoneAreNoFault) {
  constexpr uint64_t kHuge = 2 * kMiB;
  ClientMemory memory;
  const Fd file = HugePages();
  const uint32_t mapped = memory.Map(MapAt(0, kHuge), file.get());
  if (mapped == ENOMEM) GTEST_SKIP() << "no huge pages here";
  ASSERT_EQ(mapped, 0u);
  ByteVector data(64);
  EXPECT_EQ(memory.Write(0, data), 0u);
  ASSERT_TRUE(sys::Fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kHuge));
  std::vector<std::pair<Fd, HostMapping>> rest;
  for (bool some = true; some && rest.size() < 512;) {
    Fd one = HugePages();
    Result<HostMapping> map = HostMapping::Map(one.get(), 0, kHuge, PROT_READ | PROT_WRITE);
    some = map.has_value();
    if (some) rest.emplace_back(std::move(one), *std::move(map));
  }
  EXPECT_EQ(memory.Write(0, data), uint32_t{EFAULT});
  EXPECT_EQ(memory.Read(0, data), uint32_t{EFAULT});
}

TEST(VfioUserServer, G12AClientCannotUseUpTheMappingsOfTheProcess) {
  ClientMemory memory;
  const SharedMemory page(0x1000);
  uint32_t error = 0;
  for (uint64_t at = 0x1000; error == 0; at += 0x1000) error = memory.Map(MapAt(at, 0x1000), page.fd.get());
  EXPECT_EQ(error, uint32_t{ENOSPC});
  EXPECT_EQ(memory.size(), ClientMemory::kMaxMappings);
  EXPECT_EQ(memory.Map(MapAt(0x1000, 0x1000), page.fd.get()), uint32_t{ENOSPC});
  std::vector<HostMapping> more;
  while (more.size() < 20000) more.push_back(HostMapping::Map(page.fd.get(), 0, 0x1000, PROT_READ).value());
}

// A reply may name no capability that the request did not.
TEST(VfioUserServer, SaysHowManyMappingsItTakesToWhoKnowsOfThat) {
  for (const auto& [named, said] : {std::pair<std::optional<uint64_t>, std::optional<uint64_t>>{},
                                    {kDefaultDmaMaps, ClientMemory::kMaxMappings},
                                    {100, 100}}) {
    const Session session(DmaDevice::Create({}).value(), 8, named);
    EXPECT_EQ(session.server_version().max_dma_maps, said);
  }
}

TEST(VfioUserServer, AMapWithTwoFilesIsRefused) {
  Session session(DmaDevice::Create({}).value());
  const SharedMemory memory(0x1000);
  const int file = memory.fd.get();
  EXPECT_EQ(session.ErrorOf(Command::kDmaMap, Bytes(MapAt(0x1000, 0x1000)), {file, file}), uint32_t{EINVAL});
  EXPECT_EQ(session.device().memory().size(), 0u);
}

// PCI 3.0, 6.2.3: whether it is disabled or not.
TEST(VfioUserServer, ConfigSpaceShowsAnAssertedIntx) {
  const auto device = DmaDevice::Create({}).value();
  const auto status = [&](uint64_t offset, unsigned size) {
    uint64_t value = 0;
    EXPECT_TRUE(device->Read(ServedDevice::kConfig, offset, std::as_writable_bytes(std::span(&value, 1)).first(size)));
    return value;
  };
  const auto write = [&](unsigned region, uint64_t offset, uint32_t value, unsigned size) {
    EXPECT_TRUE(device->Write(region, offset, Bytes(value).first(size)));
  };
  const uint64_t quiet = status(PCI_COMMAND, 4);
  for (const uint32_t command : {0u, uint32_t{PCI_COMMAND_INTX_DISABLE}}) {
    write(ServedDevice::kConfig, PCI_COMMAND, command, 2);
    write(0, 0x60, 1, 4);
    EXPECT_EQ(status(PCI_COMMAND, 4), (quiet | command | uint64_t{PCI_STATUS_INTERRUPT} << 16));
    EXPECT_EQ(status(PCI_STATUS, 2), (quiet >> 16 | PCI_STATUS_INTERRUPT));
    EXPECT_EQ(status(PCI_STATUS, 1) & PCI_STATUS_INTERRUPT, uint64_t{PCI_STATUS_INTERRUPT});
    EXPECT_EQ(status(PCI_STATUS + 1, 1), quiet >> 24);
    EXPECT_EQ(status(PCI_CLASS_REVISION, 4) & 0xff, 0x10u);
    write(0, 0x64, 1, 4);
    EXPECT_EQ(status(PCI_COMMAND, 4), quiet | command);
  }
}

// A driver masks in its handler while another cause comes.
TEST(VfioUserServer, NoIntxIsLostWhileItIsDisabled) {
  const auto device = DmaDevice::Create({}).value();
  std::vector<Fd> event;
  event.push_back(sys::EventFd(0, O_NONBLOCK).value());
  const Fd seen(::dup(event.front().get()));
  SetIrqs irqs = SetOne(SetIrqs::kDataEventfd | SetIrqs::kTrigger);
  irqs.index = VFIO_PCI_INTX_IRQ_INDEX;
  ASSERT_EQ(device->lines().Set(irqs, {}, event), 0u);
  irqs.flags = SetIrqs::kDataNone | SetIrqs::kUnmask;
  std::atomic<int> round = 0;
  constexpr int kRounds = 20000;
  std::thread raises([&] {
    for (int i = 1; i <= kRounds; ++i) {
      while (round < 2 * i - 1) std::this_thread::yield();
      (void)device->Write(0, 0x60, Bytes(uint32_t{1}));
      round = 2 * i;
    }
  });
  unsigned lost = 0;
  for (int i = 1; i <= kRounds; ++i) {
    round = 2 * i - 1;
    for (const uint16_t command : {uint16_t{PCI_COMMAND_INTX_DISABLE}, uint16_t{0}})
      (void)device->Write(ServedDevice::kConfig, PCI_COMMAND, Bytes(command));
    while (round < 2 * i) std::this_thread::yield();
    (void)device->lines().Set(irqs, {}, {});
    // One for the cause, which masks, and one for the unmask.
    if (sys::DrainEvent(seen).value() < 2) ++lost;
    (void)device->Write(0, 0x64, Bytes(uint32_t{1}));
    (void)device->lines().Set(irqs, {}, {});
    (void)sys::DrainEvent(seen);
  }
  raises.join();
  EXPECT_EQ(lost, 0u);
}

TEST(VfioUserServer, SendsNoMoreDescriptorsThanItsClientTakes) {
  for (const uint32_t most : {0u, 1u, 8u}) {
    DmaDevice::Options options;
    options.channels = 2;
    Session session(DmaDevice::Create(options).value(), most);
    RegionIoFds query;
    query.argsz = 4096;
    const auto reply = session.Ask(Command::kGetRegionIoFds, Bytes(query));
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->fds.size(), std::min(most, 2u));
    EXPECT_EQ(Decode<RegionIoFds>(reply->body).value().count, std::min(most, 2u));
  }
  Session session(MemoryDevice::Create(0x10000).value(), 0);
  RegionInfo query;
  query.argsz = 4096;
  query.index = 2;
  const auto reply = session.Ask(Command::kGetRegionInfo, Bytes(query));
  ASSERT_TRUE(reply);
  EXPECT_THAT(reply->fds, IsEmpty());
  EXPECT_EQ(Decode<RegionInfo>(reply->body).value().flags, RegionInfo::kRead | RegionInfo::kWrite);
}

TEST(VfioUserServer, UnmapsAllAtOnceWhereItIsAskedTo) {
  Session session(DmaDevice::Create({}).value());
  const SharedMemory memory(0x1000);
  EXPECT_EQ(session.ErrorOf(Command::kDmaMap, Bytes(MapAt(0x1000, 0x1000)), {memory.fd.get()}), 0u);
  EXPECT_EQ(session.ErrorOf(Command::kDmaMap, Bytes(MapAt(0x8000, 0x1000))), 0u);
  DmaUnmapRequest all;
  all.flags = DmaUnmapRequest::kAll;
  all.size = 0x1000;
  EXPECT_EQ(session.ErrorOf(Command::kDmaUnmap, Bytes(all)), uint32_t{EINVAL}) << "of what size?";
  all.size = 0;
  all.flags = 7;
  EXPECT_EQ(session.ErrorOf(Command::kDmaUnmap, Bytes(all)), uint32_t{EINVAL});
  EXPECT_EQ(session.device().memory().size(), 2u);
  all.flags = DmaUnmapRequest::kAll;
  EXPECT_EQ(session.ErrorOf(Command::kDmaUnmap, Bytes(all)), 0u);
  EXPECT_EQ(session.device().memory().size(), 0u);
}

}  // namespace
}  // namespace crossbar::vfio_user
