// Our client and our device servers together, in one process: the main job over vfio-user.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <linux/vfio.h>
#include <unistd.h>

#include "devices/vfio_user/testing/client_machine.h"
#include "devices/vfio_user/testing/served.h"

namespace crossbar::vfio_user {
namespace {

using namespace testing;  // NOLINT: the words of these tests
using ::testing::IsEmpty;

void Pattern(std::span<std::byte> bytes, unsigned seed) {
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>((i * 31 + i / 251 + seed) & 0xff);
}

uint64_t Signals(const Fd& event) {
  pollfd poll{event.get(), POLLIN, 0};
  return sys::Poll({&poll, 1}, 2000) == 1 ? sys::DrainEvent(event).value() : 0;
}

TEST(VfioUserEndToEnd, MemoryIsMappedDirectlyAndReadsTheSameByMessage) {
  Served<MemoryDevice> memory(MemoryDevice::Create(4 * kMiB).value(), "memory");
  EXPECT_EQ(memory->region(2).size, 4 * kMiB);
  ASSERT_EQ(memory->region(2).mappable.size(), 1u);
  const Backing backing = memory->MapArea(2, memory->region(2).mappable[0]).value();
  ASSERT_NE(backing.host, Hva());
  EXPECT_TRUE(IsAligned(backing.host.value(), 2 * kMiB)) << "no huge pages";
  std::memcpy(backing.host.pointer() + 0x12345, "crossbar", 8);
  std::array<std::byte, 8> read{};
  ASSERT_TRUE(memory->Read(2, 0x12345, read));
  EXPECT_EQ(std::memcmp(read.data(), "crossbar", 8), 0);
  // BAR 0 of ivshmem-plain, and its identity.
  std::array<uint16_t, 2> identity{};
  ASSERT_TRUE(memory->Read(7, 0, std::as_writable_bytes(std::span(identity))));
  EXPECT_EQ(identity[0], 0x1af4);
  EXPECT_EQ(identity[1], 0x1110);
  EXPECT_EQ(memory->region(0).size, 256u);
  EXPECT_THAT(memory->region(0).mappable, IsEmpty()) << "less than a page";
  EXPECT_FALSE(memory->Read(2, 4 * kMiB - 4, read)) << "over the end";
}

class VfioUserPeers : public ::testing::TestWithParam<bool> {
 protected:
  ClientMachine machine;
  Served<MemoryDevice> memory{MemoryDevice::Create(kMiB).value(), "memory"};
  Served<DmaDevice> dma{WideDma(), "dma", {.twin_socket = GetParam()}};
  BackendOwner owner{memory.backend()};
  DmaDriver driver{dma.backend()};
  static constexpr uint64_t kBar = 0x8'0000'0000;
};

TEST_P(VfioUserPeers, DmaCopiesBetweenRamAndAnothersBarByteForByte) {
  ASSERT_TRUE(dma->JoinBus(machine.space));
  AddressSpace::Mapping bar = PlaceBar(machine.space, memory.backend(), owner, 2, kBar);
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  const std::span<std::byte> target = memory.device().bar(2).memory.bytes();
  for (const uint64_t size : {1ull, 100ull, 4096ull, 0x10000ull}) {
    Pattern(machine.ram.bytes().first(size), static_cast<unsigned>(size));
    ASSERT_EQ(driver.FromBus(ClientMachine::kRam, size), 0u);
    ASSERT_EQ(driver.ToBus(kBar + 0x40, size), 0u);
    ASSERT_EQ(std::memcmp(target.data() + 0x40, machine.ram.bytes().data(), size), 0);
    // And back, from what the other device holds, to the far half of RAM.
    Pattern(target.subspan(0x40, size), static_cast<unsigned>(size) + 1);
    ASSERT_EQ(driver.FromBus(kBar + 0x40, size), 0u);
    ASSERT_EQ(driver.ToBus(ClientMachine::kRam + 0x10000, size), 0u);
    ASSERT_EQ(std::memcmp(target.data() + 0x40, machine.ram.bytes().data() + 0x10000, size), 0);
  }
  EXPECT_EQ(machine.space.Peers().cells.size(), 1u);
  EXPECT_EQ(machine.space.Peers().cells[0].detail, "fd");
  machine.space.Zap(std::array{&bar});
  dma->LeaveBus();
}

TEST_P(VfioUserPeers, G7NothingReachesTheBarAfterItsZap) {
  ASSERT_TRUE(dma->JoinBus(machine.space));
  AddressSpace::Mapping bar = PlaceBar(machine.space, memory.backend(), owner, 2, kBar);
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  ASSERT_EQ(driver.ToBus(kBar, 0x1000), 0u);
  machine.space.Zap(std::array{&bar});
  memory.device().bar(2).memory.bytes()[0] = std::byte{0x5a};
  EXPECT_EQ(driver.ToBus(kBar, 0x1000), uint64_t{EFAULT});
  EXPECT_EQ(driver.FromBus(kBar, 0x1000), uint64_t{EFAULT});
  EXPECT_EQ(memory.device().bar(2).memory.bytes()[0], std::byte{0x5a});
  EXPECT_THAT(machine.space.Peers().cells, IsEmpty());
  EXPECT_THAT(machine.unsafe, IsEmpty());
}

TEST_P(VfioUserPeers, RegistersOfAPeerAreReachedThroughTheVmm) {
  ASSERT_TRUE(dma->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  RegisterOwner::Contents registers;
  Pattern(registers, 3);
  machine.registers.Fill(registers);
  ASSERT_EQ(driver.FromBus(ClientMachine::kRegisters + 0x100, 0x200), 0u);
  ASSERT_EQ(driver.ToBus(ClientMachine::kRam, 0x200), 0u);
  EXPECT_EQ(std::memcmp(machine.ram.bytes().data(), registers.data() + 0x100, 0x200), 0);
  ASSERT_EQ(driver.ToBus(ClientMachine::kRegisters + 0x800, 0x200), 0u);
  registers = machine.registers.contents();
  EXPECT_EQ(std::memcmp(registers.data() + 0x800, machine.ram.bytes().data(), 0x200), 0);
  EXPECT_EQ(driver.ToBus(ClientMachine::kRegisters + 0xf01, 0x100), uint64_t{EFAULT})
      << "one byte over the end";
  machine.ZapPeers();
  EXPECT_EQ(driver.FromBus(ClientMachine::kRegisters, 8), uint64_t{EFAULT});
}

TEST_P(VfioUserPeers, G8WithoutBusMasteringNothingIsTransferred) {
  ASSERT_TRUE(dma->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  EXPECT_EQ(driver.FromBus(ClientMachine::kRam, 8), uint64_t{EPERM});
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  EXPECT_EQ(driver.FromBus(ClientMachine::kRam, 8), 0u);
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend(), false));
  EXPECT_EQ(driver.ToBus(ClientMachine::kRegisters, 8), uint64_t{EPERM});
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  ASSERT_TRUE(dma->Reset());
  EXPECT_EQ(driver.ToBus(ClientMachine::kRam, 8), uint64_t{EPERM}) << "a reset ends bus mastering";
}

// While A waits for its DMA into B, B's zap waits for A to unmap (DESIGN 4): it must end, in time.
TEST_P(VfioUserPeers, AZapEndsTheForwardThatItWaitsFor) {
  ASSERT_TRUE(dma->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  machine.registers.delay = milliseconds(50);
  driver.Start(DmaDevice::kBuffer, ClientMachine::kRegisters, 0x1000,
               DmaDevice::kRun | DmaDevice::kToBus);
  while (!machine.registers.entered) std::this_thread::yield();
  const auto begun = Clock::now();
  machine.ZapPeers();
  EXPECT_LT(Clock::now() - begun, std::chrono::seconds(3));
  const RegisterOwner::Contents after = machine.registers.contents();
  driver.Finish();
  EXPECT_EQ(machine.registers.contents(), after);
  EXPECT_THAT(machine.unsafe, IsEmpty());
}

TEST_P(VfioUserPeers, AResetEndsTheTransferUnderWay) {
  ASSERT_TRUE(dma->JoinBus(machine.space));
  ASSERT_TRUE(machine.MapPeers());
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  machine.registers.delay = milliseconds(200);
  driver.Start(DmaDevice::kBuffer, ClientMachine::kRegisters, 0x1000,
               DmaDevice::kRun | DmaDevice::kToBus | DmaDevice::kInterrupt);
  while (!machine.registers.entered) std::this_thread::yield();
  ASSERT_TRUE(dma->Reset());
  EXPECT_EQ(driver.Read(0x98, 4), 0u);
  std::this_thread::sleep_for(milliseconds(400));
  EXPECT_EQ(driver.Read(0x24, 4), 0u) << "what was begun before the reset interrupts after it";
  EXPECT_EQ(driver.Read(0x88), 0u);
}

INSTANTIATE_TEST_SUITE_P(Sockets, VfioUserPeers, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Twin" : "One"; });

// A's DMA goes to B's registers while B's goes to A's: neither server reads commands meanwhile.
TEST(VfioUserEndToEnd, TwoDevicesThatWriteToEachOtherDoNotDeadlock) {
  for (const bool twin : {true, false}) {
    ClientMachine machine;
    Served<DmaDevice> a(WideDma(), "a", {.twin_socket = twin});
    Served<DmaDevice> b(WideDma(), "b", {.twin_socket = twin});
    BackendOwner owner_a(a.backend());
    BackendOwner owner_b(b.backend());
    ASSERT_TRUE(a->JoinBus(machine.space));
    ASSERT_TRUE(b->JoinBus(machine.space));
    AddressSpace::Mapping bar_a = PlaceBar(machine.space, a.backend(), owner_a, 0, 0x40000000);
    AddressSpace::Mapping bar_b = PlaceBar(machine.space, b.backend(), owner_b, 0, 0x50000000);
    ASSERT_TRUE(ClientMachine::SetBusMaster(a.backend()));
    ASSERT_TRUE(ClientMachine::SetBusMaster(b.backend()));
    const auto begun = Clock::now();
    const auto write = [](VfioUserBackend& from, uint64_t to) {
      DmaDriver driver(from);
      for (int i = 0; i < 50; ++i) {
        const uint64_t error = driver.ToBus(to + 0xa0000, 0x1000);
        EXPECT_TRUE(error == 0 || error == EDEADLK) << error;
      }
    };
    std::thread other([&] { write(b.backend(), 0x40000000); });
    write(a.backend(), 0x50000000);
    other.join();
    EXPECT_LT(Clock::now() - begun, std::chrono::seconds(20));
    EXPECT_FALSE(ClientMachine::Lost(a.backend()));
    EXPECT_FALSE(ClientMachine::Lost(b.backend()));
    // To its own BAR, too, it would wait for itself.
    EXPECT_EQ(DmaDriver(a.backend()).ToBus(0x40000000 + 0xa0000, 8), uint64_t{EDEADLK});
    machine.space.Zap(std::array{&bar_a, &bar_b});
    EXPECT_THAT(machine.unsafe, IsEmpty());
  }
}

TEST(VfioUserServer, AClientThatIsGoneBeforeItsReplyHasHungUpAndBrokenNothing) {
  const std::unique_ptr<MemoryDevice> memory = MemoryDevice::Create(kMiB).value();
  DeviceServer server(*memory);
  auto ends = sys::SocketPair().value();
  {
    MessageSocket client(std::move(ends.first), std::chrono::seconds(10));
    Header header;
    header.command = static_cast<uint16_t>(Command::kVersion);
    ASSERT_TRUE(client.Send(header, EncodeVersion(Version()), {}, {}, Deadline::max()));
  }
  const Result<> served = server.Serve(std::move(ends.second));
  EXPECT_TRUE(served) << served.error().message();
}

// A server may answer DMA_UNMAP only when no copy touches the memory any more.
TEST(VfioUserServer, UnmapsWaitForTheCopiesUnderWay) {
  ClientMemory memory;
  const SharedMemory shared(4 * kMiB);
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> copies = 0;
  std::thread device([&] {
    ByteVector data(kMiB);
    while (!stop) copies += memory.Write(0x100000, data) == 0 ? 1 : 0;
  });
  DmaMapRequest map;
  map.flags = DmaMapRequest::kRead | DmaMapRequest::kWrite;
  map.address = 0x100000;
  map.size = 4 * kMiB;
  DmaUnmapRequest unmap;
  unmap.address = map.address;
  unmap.size = map.size;
  for (int i = 0; i < 300 || copies < 50; ++i) {
    ASSERT_EQ(memory.Map(map, shared.fd.get()), 0u);
    if (i % 3 == 0) std::this_thread::yield();
    ASSERT_EQ(memory.Unmap(unmap), 0u);
  }
  stop = true;
  device.join();
}

TEST(VfioUserServer, RefusesMappingsThatMakeNoSense) {
  ClientMemory memory;
  const auto map = [&](uint64_t address, uint64_t size, uint32_t flags = 3, uint64_t offset = 0) {
    DmaMapRequest request;
    request.flags = flags;
    request.address = address;
    request.size = size;
    request.offset = offset;
    return memory.Map(request, SharedMemory(0x4000).fd.get());
  };
  EXPECT_EQ(map(0x1000, 0x2000), 0u);
  EXPECT_EQ(map(0x2000, 0x1000), uint32_t{EEXIST});
  EXPECT_EQ(map(0x1000, 0x2000), uint32_t{EEXIST});
  EXPECT_EQ(map(0x8000, 0), uint32_t{EINVAL});
  EXPECT_EQ(map(0x8000, 0x800), uint32_t{EINVAL});
  EXPECT_EQ(map(0x8010, 0x1000), uint32_t{EINVAL});
  EXPECT_EQ(map(0x8000, 0x1000, 7), uint32_t{EINVAL});
  EXPECT_EQ(map(0x8000, 0x1000, 3, 0x10), uint32_t{EINVAL});
  EXPECT_EQ(map(~uint64_t{0} - 0xfff, 0x2000), uint32_t{EINVAL});
  // Behind the end of its file: an error when it is used, not a fault.
  EXPECT_EQ(map(0x10000, 0x10000), 0u);
  std::array<std::byte, 64> data{};
  EXPECT_EQ(memory.Read(0x18000, data), uint32_t{EFAULT});
  EXPECT_EQ(memory.Write(0x18000, data), uint32_t{EFAULT});
  EXPECT_EQ(memory.Read(0x1000, data), 0u);
  EXPECT_EQ(map(0x40000, 0x1000, DmaMapRequest::kRead), 0u);
  EXPECT_EQ(memory.Write(0x40000, data), uint32_t{EFAULT});
  DmaUnmapRequest part;
  part.address = 0x1000;
  part.size = 0x1000;
  EXPECT_EQ(memory.Unmap(part), uint32_t{ENOENT});
}

// --- The dma device's own --------------------------------------------------------------------------

TEST(VfioUserDma, HasTheRegistersOfEdu) {
  Served<DmaDevice> dma(DmaDevice::Create({}).value(), "dma");
  DmaDriver driver(dma.backend());
  EXPECT_EQ(driver.Read(0, 4), 0x010000edu);
  driver.Write(4, 0x12345678, 4);
  EXPECT_EQ(driver.Read(4, 4), 0xedcba987u);
  driver.Write(8, 10, 4);
  EXPECT_EQ(driver.Read(8, 4), 3628800u);
  EXPECT_EQ(driver.Read(0x20, 4), 0u);
  EXPECT_EQ(driver.Read(0x0, 2), 0xffffu) << "only dwords below 0x80";
  EXPECT_EQ(driver.Read(0x1000, 4), 0u) << "channel 0 again";
  EXPECT_EQ(dma->region(0).size, kMiB);
  EXPECT_EQ(dma->region(7).size, 256u);
  EXPECT_EQ(dma->interrupt(VFIO_PCI_MSIX_IRQ_INDEX).count, 0u);
  EXPECT_THAT(dma->IoEvents(0), IsEmpty());
  // 28 bits of address, a buffer of 4 KiB.
  EXPECT_EQ(driver.Read(DmaDevice::kExtensions + 0x10), 0xfffffffu);
  EXPECT_EQ(driver.ToBus(0x100000, 4097), uint64_t{ERANGE});
}

TEST(VfioUserDma, SignalsMsiStraightIntoAnEventfd) {
  ClientMachine machine;
  Served<DmaDevice> dma(WideDma(), "dma");
  DmaDriver driver(dma.backend());
  ASSERT_TRUE(dma->JoinBus(machine.space));
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  const Fd event = sys::EventFd(0, O_NONBLOCK).value();
  ASSERT_TRUE(dma->SetInterrupts(VFIO_PCI_MSI_IRQ_INDEX, 0, std::array{event.get()}));
  driver.Start(ClientMachine::kRam, DmaDevice::kBuffer, 64,
               DmaDevice::kRun | DmaDevice::kInterrupt);
  EXPECT_EQ(Signals(event), 1u);
  EXPECT_EQ(driver.Read(0x24, 4), 0x100u);
  driver.Write(0x64, 0x100, 4);
  EXPECT_EQ(driver.Read(0x24, 4), 0u);
  ASSERT_TRUE(dma->DisableInterrupts(VFIO_PCI_MSI_IRQ_INDEX));
  driver.Write(0x60, 1, 4);
  EXPECT_EQ(sys::DrainEvent(event).value(), 0u);
}

TEST(VfioUserDma, KeepsIntxMaskedUntilItIsUnmasked) {
  Served<DmaDevice> dma(DmaDevice::Create({}).value(), "dma");
  DmaDriver driver(dma.backend());
  const Fd event = sys::EventFd(0, O_NONBLOCK).value();
  ASSERT_TRUE(dma->SetInterrupts(VFIO_PCI_INTX_IRQ_INDEX, 0, std::array{event.get()}));
  EXPECT_EQ(dma->SetIntxUnmaskEvent(event.get()).value(), false);
  driver.Write(0x60, 1, 4);
  EXPECT_EQ(Signals(event), 1u);
  driver.Write(0x60, 2, 4);
  EXPECT_EQ(sys::DrainEvent(event).value(), 0u) << "masked by itself";
  ASSERT_TRUE(dma->UnmaskIntx());
  EXPECT_EQ(Signals(event), 1u) << "still asserted";
  driver.Write(0x64, 3, 4);
  ASSERT_TRUE(dma->UnmaskIntx());
  EXPECT_EQ(sys::DrainEvent(event).value(), 0u);
}

TEST(VfioUserDma, ChannelsHaveVectorsAndDoorbells) {
  ClientMachine machine;
  Served<DmaDevice> dma(DmaDevice::Create({.buffer_size = 64 * kKiB,
                                           .address_bits = 64,
                                           .channels = 3,
                                           .msix = true})
                            .value(),
                        "dma");
  DmaDriver driver(dma.backend());
  ASSERT_TRUE(dma->JoinBus(machine.space));
  ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
  ASSERT_EQ(dma->interrupt(VFIO_PCI_MSIX_IRQ_INDEX).count, 3u);
  std::array<Fd, 3> events;
  for (Fd& event : events) event = sys::EventFd(0, O_NONBLOCK).value();
  ASSERT_TRUE(dma->SetInterrupts(VFIO_PCI_MSIX_IRQ_INDEX, 0,
                                 std::array{events[0].get(), -1, events[2].get()}));
  const std::vector<IoEvent> doorbells = dma->IoEvents(0);
  ASSERT_EQ(doorbells.size(), 3u);
  EXPECT_EQ(doorbells[2].address, Gpa(0x1220));
  Pattern(machine.ram.bytes().first(0x100), 9);
  const uint64_t channel = DmaDevice::kChannels + 2 * DmaDevice::kChannelSize;
  driver.Write(channel, ClientMachine::kRam);
  driver.Write(channel + 8, DmaDevice::kBuffer);
  driver.Write(channel + 0x10, 0x100);
  driver.Write(channel + 0x18, DmaDevice::kInterrupt, 4);
  // As KVM would.
  const uint64_t one = 1;
  ASSERT_TRUE(sys::WriteAll(doorbells[2].eventfd, Bytes(one)));
  EXPECT_EQ(Signals(events[2]), 1u);
  EXPECT_EQ(sys::DrainEvent(events[0]).value(), 0u);
  ASSERT_EQ(driver.ToBus(ClientMachine::kRam + 0x1000, 0x100), 0u);
  EXPECT_EQ(std::memcmp(machine.ram.bytes().data(), machine.ram.bytes().data() + 0x1000, 0x100), 0);
}

// The client has the doorbell's file too: it may change its flags and read what is not for it.
TEST(VfioUserDma, ADoorbellThatItsClientMeddlesWithStartsNothingAndHoldsUpNobody) {
  ClientMachine machine;
  auto dma = std::make_unique<Served<DmaDevice>>(
      DmaDevice::Create({.address_bits = 64, .channels = 2, .msix = true}).value(), "dma");
  DmaDriver driver(dma->backend());
  const Fd event = sys::EventFd(0, O_NONBLOCK).value();
  ASSERT_TRUE((*dma)->SetInterrupts(VFIO_PCI_MSIX_IRQ_INDEX, 1, std::array{event.get()}));
  const Fd doorbell(::dup((*dma)->IoEvents(0).at(1).eventfd));
  driver.Write(DmaDevice::kChannels + DmaDevice::kChannelSize + 0x18, DmaDevice::kInterrupt, 4);
  const int flags = ::fcntl(doorbell.get(), F_GETFL);
  ASSERT_EQ(::fcntl(doorbell.get(), F_SETFL, flags | O_NONBLOCK), 0);
  ASSERT_TRUE(sys::SignalEvent(doorbell));
  EXPECT_EQ(Signals(event), 1u);
  for (int i = 0; i < 50; ++i) driver.Read(0, 4);
  EXPECT_EQ(sys::DrainEvent(event).value(), 0u) << "nobody has rung again";
  // A reader that waits gets what comes next.
  (void)sys::DrainEvent(doorbell);
  ASSERT_EQ(::fcntl(doorbell.get(), F_SETFL, flags), 0);
  std::atomic<bool> reads = false;
  std::thread thief([&] {
    reads = true;
    (void)sys::DrainEvent(doorbell);
  });
  while (!reads) std::this_thread::yield();
  dma.reset();
  ASSERT_TRUE(sys::SignalEvent(doorbell));
  thief.join();
}

TEST(VfioUserDma, ResetsByFunctionLevelResetOfEitherKind) {
  using FunctionReset = DmaDevice::FunctionReset;
  for (const auto& [kind, id, at, value] :
       {std::tuple{FunctionReset::kAf, PCI_CAP_ID_AF, PCI_AF_CTRL, PCI_AF_CTRL_FLR},
        std::tuple{FunctionReset::kPcie, PCI_CAP_ID_EXP, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR}}) {
    Served<DmaDevice> dma(DmaDevice::Create({.reset = kind}).value(), "dma");
    DmaDriver driver(dma.backend());
    PciConfigSpace config;
    for (uint16_t i = 0; i < 256; i = static_cast<uint16_t>(i + 4)) {
      uint32_t word = 0;
      ASSERT_TRUE(dma->Read(7, i, std::as_writable_bytes(std::span(&word, 1))));
      config.Set<uint32_t>(i, word);
    }
    const auto offset = config.FindCapability(static_cast<uint8_t>(id));
    ASSERT_TRUE(offset);
    driver.Write(4, 0, 4);
    ASSERT_TRUE(ClientMachine::SetBusMaster(dma.backend()));
    const auto flr = static_cast<uint16_t>(value);
    ASSERT_TRUE(dma->Write(7, static_cast<uint64_t>(*offset + at), Bytes(flr)));
    EXPECT_EQ(driver.Read(4, 4), 0u);
    EXPECT_FALSE(dma.device().bus_master());
  }
}

}  // namespace
}  // namespace crossbar::vfio_user
