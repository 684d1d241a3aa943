// ScriptedServer: a vfio-user server in a thread of the test, well-behaved but for what a script does
// to chosen messages. And what every test of a client needs: sealed memory, a census of descriptors.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/memfd.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/sys.h"
#include "base/sys_socket.h"
#include "devices/vfio_user/message_socket.h"
#include "devices/vfio_user/protocol.h"
#include "memory/host_mapping.h"

namespace crossbar::vfio_user::testing {

using ByteVector = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

inline size_t OpenDescriptors() {
  const std::filesystem::directory_iterator folder("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(folder), end(folder)));
}

// As OpenDescriptors, once it is `expected` or that takes too long: what was discarded may be closed a little
// later.
inline size_t SettledDescriptors(size_t expected) {
  const auto deadline = Clock::now() + milliseconds(3000);
  while (OpenDescriptors() != expected && Clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(1));
  return OpenDescriptors();
}

// Memory in a memfd, sealed or not.
struct SharedMemory {
  explicit SharedMemory(uint64_t size, bool sealed = true) {
    fd = sys::MemfdCreate("test", MFD_ALLOW_SEALING).value();
    EXPECT_TRUE(sys::Ftruncate(fd.get(), size));
    if (sealed) {
      EXPECT_TRUE(sys::AddSeals(fd.get(), F_SEAL_SHRINK | F_SEAL_GROW));
    }
    map = HostMapping::Map(fd.get(), 0, size, PROT_READ | PROT_WRITE).value();
  }
  std::span<std::byte> bytes() const { return map.bytes(); }
  uint8_t at(size_t i) const { return std::to_integer<uint8_t>(map.bytes()[i]); }
  void Fill(uint8_t value) { std::memset(map.bytes().data(), value, map.size()); }

  Fd fd;
  HostMapping map;
};

inline ByteVector Join(std::initializer_list<std::span<const std::byte>> parts) {
  ByteVector all;
  for (const auto part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

inline bool Is(const Message& message, Command command) {
  return message.header.command == static_cast<uint16_t>(command);
}

class ScriptedServer {
 public:
  static constexpr uint64_t kRegisters = 0x2000;  // BAR 0, trapped
  static constexpr uint64_t kMemory = 0x10000;    // BAR 2, a sealed memfd
  static constexpr uint64_t kConfigSize = 256;

  // Whether the script has dealt with the message; else the server does.
  using Script = std::function<bool(ScriptedServer&, Message&)>;

  explicit ScriptedServer(Script script = {}, bool twin = false)
      : script_(std::move(script)), twin_offered_(twin), registers_(kRegisters) {
    auto ends = sys::SocketPair().value();
    client_end_ = std::move(ends.first);
    main_ = std::make_unique<MessageSocket>(std::move(ends.second), milliseconds(2000));
    thread_ = std::thread([this] { Run(); });
  }
  ~ScriptedServer() {
    main_->Shutdown();
    if (thread_.joinable()) thread_.join();
  }

  Fd TakeClientEnd() { return std::move(client_end_); }
  // The server goes, as when its process dies.
  void Die() {
    main_->Shutdown();
    if (twin_) twin_->Shutdown();
    dead_ = true;
  }

  // What is done to every reply before it goes out; set by scripts.
  std::function<void(Header&, ByteVector&, std::vector<int>&)> distort;

  // It ends the connection but not the twin's.
  void HangUp() { main_->Shutdown(); }

  // Words for scripts.
  void Reply(const Message& request, std::span<const std::byte> body = {},
             std::vector<int> fds = {}, uint32_t flags = Header::kReply, uint32_t error = 0) {
    Header header = request.header;
    header.flags = flags;
    header.error = error;
    ByteVector changed(body.begin(), body.end());
    if (distort) distort(header, changed, fds);
    (void)main_->Send(header, changed, {}, fds, Clock::now() + milliseconds(2000));
  }
  void Refuse(const Message& request, uint32_t error) {
    Reply(request, {}, {}, Header::kReply | Header::kError, error);
  }
  void Raw(std::span<const std::byte> bytes, std::vector<int> fds = {}) {
    const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    (void)sys::TrySend(main_->fd(), {&part, 1}, fds);
  }
  // A command to the client, on the twin where there is one.
  bool Send(Command command, std::span<const std::byte> body, uint16_t id = 7, uint32_t flags = 0,
            std::vector<int> fds = {}) {
    Header header;
    header.id = id;
    header.command = static_cast<uint16_t>(command);
    header.flags = flags;
    MessageSocket& socket = twin_ ? *twin_ : *main_;
    return socket.Send(header, body, {}, fds, Clock::now() + milliseconds(1000)).has_value();
  }
  // The client's answer to it; nothing where it hangs up.
  std::optional<Message> Answer() {
    MessageSocket& socket = twin_ ? *twin_ : *main_;
    auto message = socket.Receive(kMaxMessage, Clock::now() + milliseconds(3000));
    if (!message || !*message) return std::nullopt;
    return std::move(**message);
  }
  std::optional<Message> Ask(Command command, std::span<const std::byte> body) {
    if (!Send(command, body)) return std::nullopt;
    return Answer();
  }

  // What it answers when nobody interferes.
  void Behave(Message& message) {
    switch (static_cast<Command>(message.header.command)) {
      case Command::kVersion: return Greet(message);
      case Command::kGetInfo: {
        DeviceInfo info;
        info.flags = DeviceInfo::kReset | DeviceInfo::kPci;
        info.regions = 9;
        info.irqs = 5;
        return Reply(message, Bytes(info));
      }
      case Command::kGetRegionInfo: return DescribeRegion(message);
      case Command::kGetIrqInfo: {
        auto info = Decode<IrqInfo>(message.body).value();
        info.flags = IrqInfo::kEventfd;
        info.count = info.index == VFIO_PCI_MSIX_IRQ_INDEX ? 40 : info.index < 2 ? 1 : 0;
        return Reply(message, Bytes(info));
      }
      case Command::kDmaMap: {
        const auto map = Decode<DmaMapRequest>(message.body).value();
        maps[map.address] = {map, !message.fds.empty()};
        if (!message.fds.empty()) map_fds.push_back(std::move(message.fds.front()));
        return Reply(message);
      }
      case Command::kDmaUnmap: return Reply(message, message.body);
      case Command::kGetRegionIoFds: return Refuse(message, EINVAL);
      case Command::kRegionRead: return Access(message, false);
      case Command::kRegionWrite: return Access(message, true);
      default: return Reply(message);
    }
  }
  void Greet(const Message& message) {
    Version version;
    version.minor = 1;
    version.max_msg_fds = 8;
    if (!twin_offered_) return Reply(message, EncodeVersion(version));
    auto ends = sys::SocketPair().value();
    version.twin_socket = true;
    version.twin_fd_index = 0;
    twin_ = std::make_unique<MessageSocket>(std::move(ends.first), milliseconds(2000));
    Reply(message, EncodeVersion(version), {ends.second.get()});
  }
  RegionInfo InfoOn(const Message& message) const {
    RegionInfo info;
    info.index = Decode<RegionInfo>(message.body).value().index;
    info.flags = RegionInfo::kRead | RegionInfo::kWrite;
    if (info.index == 0) info.size = kRegisters;
    if (info.index == 2) info.size = kMemory;
    if (info.index == 7) info.size = kConfigSize;
    if (info.index == 2) info.flags |= RegionInfo::kMmap;
    return info;
  }

  SharedMemory memory{kMemory};
  ByteVector config = ByteVector(kConfigSize);
  std::map<uint64_t, std::pair<DmaMapRequest, bool>> maps;  // and whether with a file
  std::vector<Fd> map_fds;

 private:
  void DescribeRegion(const Message& message) {
    const RegionInfo info = InfoOn(message);
    Reply(message, Bytes(info),
          info.index == 2 ? std::vector{memory.fd.get()} : std::vector<int>());
  }
  void Access(const Message& message, bool write) {
    const auto access = Decode<RegionAccess>(message.body).value();
    std::span<std::byte> region = registers_;
    if (access.region == 7) region = config;
    if (access.region == 2) region = memory.bytes();
    if (access.offset + access.count > region.size()) return Refuse(message, EINVAL);
    const auto bytes = region.subspan(access.offset, access.count);
    if (!write) return Reply(message, Join({Bytes(access), bytes}));
    std::memcpy(bytes.data(), message.body.data() + sizeof access, access.count);
    Reply(message, Bytes(access));
  }
  void Run() {
    while (!dead_) {
      auto message = main_->Receive(kMaxMessage, Deadline::max());
      if (!message || !*message) return;
      if (script_ && script_(*this, **message)) continue;
      Behave(**message);
    }
  }

  const Script script_;
  const bool twin_offered_;
  ByteVector registers_;
  Fd client_end_;
  std::unique_ptr<MessageSocket> main_;
  std::unique_ptr<MessageSocket> twin_;
  std::atomic<bool> dead_ = false;
  std::thread thread_;
};

}  // namespace crossbar::vfio_user::testing
