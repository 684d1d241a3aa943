// Fuzzes our device servers from the client's side: a sequence of commands, more or less well made, some
// with descriptors, and answers to the server's own where there is a twin socket for them, then the end. The server must end with its client, keep no descriptor and no mapping,
// and reach nothing that it was not given.
#include <fcntl.h>
#include <linux/memfd.h>

#include <memory>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "devices/vfio_user/device_server.h"
#include "devices/vfio_user/dma_device.h"
#include "devices/vfio_user/memory_device.h"
#include "devices/vfio_user/testing/scripted_server.h"
#include "tests/fuzz/fuzz_input.h"

namespace crossbar::vfio_user {
namespace {

using testing::ByteVector;
using std::chrono::milliseconds;

class Client {
 public:
  Client(fuzz::FuzzInput& input, Fd socket)
      : input_(input), fd_(socket.get()), socket_(std::move(socket), milliseconds(50)) {
    CHECK(sys::Ftruncate(short_.get(), 0x1000));
    const uint64_t full = ~uint64_t{0} - 1;
    CHECK(sys::Write(full_.get(), Bytes(full)));
  }

  void Step() {
    if (input_.InRange(0, 15) == 0) return Transfer();
    ByteVector body;
    Header header;
    header.id = input_.Number<uint8_t>();
    header.command = static_cast<uint16_t>(input_.InRange(1, 18));
    header.flags = input_.InRange(0, 15) == 0 ? input_.Number<uint8_t>() : 0;
    if (input_.InRange(0, 31) == 0) {
      const auto raw = std::as_bytes(input_.Bytes(input_.InRange(1, 40)));
      const iovec part{const_cast<std::byte*>(raw.data()), raw.size()};
      (void)sys::TrySend(fd_, {&part, 1}, {});
      return;
    }
    Fill(static_cast<Command>(header.command), body);
    if (input_.InRange(0, 7) == 0) body.resize(input_.InRange(0, 80));
    (void)socket_.Send(header, body, {}, Descriptors(), Clock::now() + milliseconds(50));
    Drain();
    Answer();
  }

 private:
  using Clock = std::chrono::steady_clock;

  template <typename T>
  static void Append(ByteVector& body, const T& value) {
    const auto bytes = Bytes(value);
    body.insert(body.end(), bytes.begin(), bytes.end());
  }
  void Say(Command command, std::span<const std::byte> body) {
    Header header;
    header.command = static_cast<uint16_t>(command);
    (void)socket_.Send(header, body, {}, {}, Clock::now() + milliseconds(50));
    Drain();
  }
  void WriteRegion(uint32_t region, uint64_t offset, uint32_t size, uint64_t value) {
    ByteVector body;
    Append(body, RegionAccess{offset, region, size});
    const auto bytes = Bytes(value).first(size);
    body.insert(body.end(), bytes.begin(), bytes.end());
    Say(Command::kRegionWrite, body);
  }
  // A transfer from or to memory that is shared without a file: the server has to ask for it.
  void Transfer() {
    constexpr uint64_t kShared = 0x10000000;
    DmaMapRequest map;
    map.flags = DmaMapRequest::kRead | DmaMapRequest::kWrite;
    map.address = kShared;
    map.size = 0x1000;
    Say(Command::kDmaMap, Bytes(map));
    WriteRegion(7, 4, 2, 6);  // memory and bus mastering
    const bool to_bus = input_.InRange(0, 1) != 0;
    WriteRegion(0, 0x80, 8, to_bus ? DmaDevice::kBuffer : kShared);
    WriteRegion(0, 0x88, 8, to_bus ? kShared : DmaDevice::kBuffer);
    WriteRegion(0, 0x90, 8, input_.InRange(0, 0x1100));
    WriteRegion(0, 0x98, 4, DmaDevice::kRun | (to_bus ? DmaDevice::kToBus : 0));
    Answer();
  }
  // A number that is often a page, often small, and sometimes anything.
  uint64_t Number() {
    switch (input_.InRange(0, 3)) {
      case 0: return input_.InRange(0, 255);
      case 1: return uint64_t{input_.InRange(0, 255)} * 0x1000;
      case 2: return 0x40000 + uint64_t{input_.InRange(0, 255)};
      default: return input_.Number<uint64_t>();
    }
  }
  uint32_t Small() { return input_.InRange(0, 15) == 0 ? input_.Number<uint32_t>() : input_.InRange(0, 9); }
  std::vector<int> Descriptors() {
    const int choices[] = {memory_.fd.get(), short_.get(), event_.get(), full_.get()};
    std::vector<int> fds;
    for (uint32_t n = input_.InRange(0, 5); n > 2; --n) {
      const uint32_t which = input_.InRange(0, 63);
      fds.push_back(which == 63 ? fd_ : choices[which % 4]);  // a socket is neither memory nor an eventfd
    }
    return fds;
  }
  void Drain() {
    for (int i = 0; i < 64; ++i) {
      pollfd poll{fd_, POLLIN, 0};
      if (sys::Poll({&poll, 1}, 0) != 1) return;
      auto message = socket_.Receive(kMaxMessage, Clock::now());
      if (!message) return;
      if (*message && (*message)->header.command == static_cast<uint16_t>(Command::kVersion) &&
          !(*message)->fds.empty())
        twin_ = std::make_unique<MessageSocket>(std::move((*message)->fds.front()), milliseconds(50));
    }
  }
  // What the server asks for, answered as it should be or not.
  void Answer() {
    if (!twin_) return;
    const auto message = twin_->Receive(kMaxMessage, Clock::now() + milliseconds(2));
    if (!message) return twin_.reset();
    if (!*message) return;
    Header header = (*message)->header;
    header.flags = Header::kReply;
    ByteVector body = (*message)->body;
    body.resize(sizeof(DmaAccess));
    if (header.command == static_cast<uint16_t>(Command::kDmaRead))
      body.resize(body.size() + Decode<DmaAccess>(body).value().count);
    switch (input_.InRange(0, 15)) {
      case 0: return;  // silence
      case 1:
        header.id = input_.Number<uint16_t>();
        break;
      case 2:
        header.flags = input_.Number<uint8_t>();
        header.error = input_.Number<uint8_t>();
        break;
      case 3:
        body.resize(input_.InRange(0, 100));
        break;
      default: break;
    }
    (void)twin_->Send(header, body, {}, Descriptors(), Clock::now() + milliseconds(50));
  }

  Version Offer() {
    Version version;
    version.max_msg_fds = input_.InRange(0, 3);
    version.twin_socket = input_.InRange(0, 1) != 0;
    return version;
  }
  void Fill(Command command, ByteVector& body) {
    switch (command) {
      case Command::kVersion:
        body = EncodeVersion(Offer());
        break;
      case Command::kDmaMap: {
        DmaMapRequest map;
        map.flags = input_.InRange(0, 7);
        map.offset = Number();
        map.address = Number();
        map.size = Number();
        return Append(body, map);
      }
      case Command::kDmaUnmap: {
        DmaUnmapRequest unmap;
        unmap.flags = input_.InRange(0, 7) == 0 ? input_.InRange(0, 3) : 0;
        unmap.address = Number();
        unmap.size = Number();
        return Append(body, unmap);
      }
      case Command::kGetInfo: return Append(body, DeviceInfo());
      case Command::kGetRegionInfo: {
        RegionInfo info;
        info.argsz = input_.InRange(0, 255);
        info.index = Small();
        return Append(body, info);
      }
      case Command::kGetRegionIoFds:
      case Command::kGetIrqInfo: {
        IrqInfo info;
        info.argsz = input_.InRange(0, 255);
        info.index = Small();
        info.flags = 0;
        return Append(body, info);
      }
      case Command::kSetIrqs: {
        SetIrqs irqs;
        irqs.flags = input_.InRange(0, 63);
        irqs.index = Small();
        irqs.start = Small();
        irqs.count = Small();
        return Append(body, irqs);
      }
      case Command::kRegionRead:
      case Command::kRegionWrite: {
        RegionAccess access;
        access.region = Small();
        access.offset = input_.InRange(0, 3) == 0 ? 0x1000 + 8 * Small() : Number();
        access.count = command == Command::kRegionRead ? static_cast<uint32_t>(Number())
                                                       : input_.InRange(0, 12);
        Append(body, access);
        if (command == Command::kRegionRead) return;
        const uint64_t value = Number();
        for (uint32_t i = 0; i < access.count; ++i)
          body.push_back(Bytes(value)[i % 8]);
        return;
      }
      default: break;
    }
  }

  fuzz::FuzzInput& input_;
  const int fd_;
  MessageSocket socket_;
  std::unique_ptr<MessageSocket> twin_;
  testing::SharedMemory memory_{0x4000};
  const Fd short_ = sys::MemfdCreate("short", MFD_ALLOW_SEALING).value();
  const Fd event_ = sys::EventFd(0, O_NONBLOCK).value();
  const Fd full_ = sys::EventFd().value();  // a writer would wait
};

std::unique_ptr<ServedDevice> MakeDevice(fuzz::FuzzInput& input) {
  if (input.InRange(0, 3) == 0) return MemoryDevice::Create(0x10000).value();
  DmaDevice::Options options;
  options.address_bits = 64;
  options.channels = input.InRange(1, 2);
  options.msix = input.InRange(0, 1) != 0;
  options.reset = static_cast<DmaDevice::FunctionReset>(input.InRange(0, 2));
  return DmaDevice::Create(options).value();
}

void Run(fuzz::FuzzInput input) {
  const std::unique_ptr<ServedDevice> device = MakeDevice(input);
  DeviceServer::Options options;
  options.stall = options.request = milliseconds(20);
  options.twin_socket = input.InRange(0, 1) != 0;
  DeviceServer server(*device, options);
  auto ends = sys::SocketPair().value();
  std::thread thread([&, end = std::move(ends.second)]() mutable { (void)server.Serve(std::move(end)); });
  {
    Client client(input, std::move(ends.first));
    for (int i = 0; i < 100 && !input.empty(); ++i) client.Step();
  }
  thread.join();
  CHECK(device->memory().size() == 0);
}

}  // namespace
}  // namespace crossbar::vfio_user

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  crossbar::log::SetLevel(crossbar::LogLevel::kError);
  const size_t before = crossbar::vfio_user::testing::OpenDescriptors();
  crossbar::vfio_user::Run({data, size});
  CHECK(crossbar::vfio_user::testing::SettledDescriptors(before) == before, "descriptors leaked");
  return 0;
}
