#include "devices/vfio_user/device_server.h"

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user {
namespace {

using Clock = std::chrono::steady_clock;

template <typename T>
void Append(std::vector<std::byte>& body, const T& value) {
  const auto bytes = Bytes(value);
  body.insert(body.end(), bytes.begin(), bytes.end());
}

}  // namespace

Result<> DeviceServer::Serve(Fd socket) {
  socket_ = std::make_shared<ServerSocket>(std::move(socket), options_.stall);
  // Each client may leave one behind.
  const unsigned hanging = HangingCloses();
  if (hanging >= kMaxHangingCloses) {
    LogWarning("{} clients left files that still hang in close: no descriptors are taken", hanging);
    socket_->stream.TakeNoDescriptors();
  }
  const Result<> ended = Converse();
  if (requester_) requester_->Close();
  device_.memory().Clear();
  device_.lines().Clear();
  requester_.reset();
  socket_.reset();
  // That the client has hung up shows in what comes from it, or where a reply is sent to it.
  const bool hung_up = !ended && ended.error().code() == EPIPE;
  return hung_up ? Result<>() : ended;
}

Result<> DeviceServer::Converse() {
  bool greeted = false;
  while (true) {
    std::optional<Message> message = TRY(socket_->stream.Receive(kMaxMessage, Deadline::max()));
    // One strike: each costs a thread, perhaps for good.
    if (std::ranges::any_of(message->fds, MayHang))
      return Fail("it passes a descriptor that is neither memory nor an eventfd");
    if (!greeted) {
      TRY(Greet(*message));
      greeted = true;
    } else {
      TRY(Handle(*std::move(message)));
    }
  }
}

// VERSION comes first. What is no version gets an error and ends the session.
Result<> DeviceServer::Greet(Message& message) {
  const auto client = message.header.type() == 0 &&
                              message.header.command == static_cast<uint16_t>(Command::kVersion)
                          ? ParseVersion(message.body)
                          : Fail("{} before VERSION", CommandName(message.header.command));
  if (!client || client->major != 0) {
    Reply refusal;
    refusal.error = EINVAL;
    TRY(Send(message.header, refusal));
    return client ? Fail("the client speaks version {}", client->major)
                  : Result<>(std::unexpected(client.error()));
  }
  Version ours;
  ours.minor = std::min<uint16_t>(client->minor, 1);
  ours.max_msg_fds = kOurMessageFds;
  if (client->max_dma_maps)
    ours.max_dma_maps = std::min<uint64_t>(*client->max_dma_maps, ClientMemory::kMaxMappings);
  client_max_fds_ = client->max_msg_fds;
  Reply reply;
  std::optional<std::pair<Fd, Fd>> twin;
  if (options_.twin_socket && client->twin_socket && client->max_msg_fds > 0) {
    twin.emplace(TRY(sys::SocketPair()));
    ours.twin_socket = true;
    ours.twin_fd_index = 0;
    reply.fds = {twin->second.get()};
  }
  reply.body = EncodeVersion(ours);
  // A client that names no capabilities may not expect any.
  if (message.body.size() == 4) reply.body.resize(4);
  UseRequester(*client, twin ? std::optional(std::move(twin->first)) : std::nullopt);
  return Send(message.header, reply);
}

void DeviceServer::UseRequester(const Version& client, std::optional<Fd> twin) {
  const uint64_t most = std::min(kOurTransfer, client.max_data_xfer_size);
  const bool has_twin = twin.has_value();
  auto socket = has_twin ? std::make_shared<ServerSocket>(std::move(*twin), options_.stall) : socket_;
  if (has_twin) socket->stream.TakeNoDescriptors();  // answers bring none
  requester_ = std::make_shared<DmaRequester>(std::move(socket), has_twin, most, options_.request);
  device_.memory().SetAsker(requester_);
}

Result<> DeviceServer::Handle(Message message) {
  if (message.header.type() == Header::kReply) {
    if (!requester_->Deliver(std::move(message))) return Fail("a reply that nobody waits for");
    return {};
  }
  const Header header = message.header;
  const Reply reply =
      header.type() == 0 ? Dispatch(message) : Reply{.error = EINVAL, .body = {}, .fds = {}};
  if (reply.error != 0)
    LogDebug("{} fails: {}", CommandName(header.command), reply.error);
  if ((header.flags & Header::kNoReply) != 0) return {};
  return Send(header, reply);
}

Result<> DeviceServer::Send(const Header& request, const Reply& reply) {
  Header header = request;
  header.flags = Header::kReply | (reply.error != 0 ? Header::kError : 0);
  header.error = reply.error;
  const bool ok = reply.error == 0;
  return socket_->Send(header, ok ? std::span(reply.body) : std::span<const std::byte>(), {},
                       ok ? std::span(reply.fds) : std::span<const int>(),
                       Clock::now() + options_.stall);
}

DeviceServer::Reply DeviceServer::Dispatch(Message& message) {
  switch (static_cast<Command>(message.header.command)) {
    case Command::kDmaMap: return MapDma(message);
    case Command::kDmaUnmap: return UnmapDma(message);
    case Command::kGetInfo: return GetInfo(message);
    case Command::kGetRegionInfo: return GetRegionInfo(message);
    case Command::kGetRegionIoFds: return GetRegionIoFds(message);
    case Command::kGetIrqInfo: return GetIrqInfo(message);
    case Command::kSetIrqs: return SetInterrupts(message);
    case Command::kRegionRead: return ReadRegion(message);
    case Command::kRegionWrite: return WriteRegion(message);
    case Command::kReset:
      device_.Reset();
      return {};
    default: return {.error = EINVAL, .body = {}, .fds = {}};
  }
}

DeviceServer::Reply DeviceServer::MapDma(const Message& message) {
  Reply reply;
  const auto request = Decode<DmaMapRequest>(message.body);
  if (!request || request->argsz < sizeof(DmaMapRequest) || message.fds.size() > 1) {
    reply.error = EINVAL;
    return reply;
  }
  // The file stays the message's, which closes it where that may take for ever.
  reply.error =
      device_.memory().Map(*request, message.fds.empty() ? -1 : message.fds.front().get());
  return reply;
}

DeviceServer::Reply DeviceServer::UnmapDma(const Message& message) {
  Reply reply;
  const auto request = Decode<DmaUnmapRequest>(message.body);
  if (!request || request->argsz < sizeof(DmaUnmapRequest)) {
    reply.error = EINVAL;
    return reply;
  }
  reply.error = device_.memory().Unmap(*request);
  Append(reply.body, *request);
  return reply;
}

DeviceServer::Reply DeviceServer::GetInfo(const Message& message) const {
  Reply reply;
  const auto request = Decode<DeviceInfo>(message.body);
  if (!request || request->argsz < sizeof(DeviceInfo)) {
    reply.error = EINVAL;
    return reply;
  }
  DeviceInfo info;
  info.flags = DeviceInfo::kReset | DeviceInfo::kPci;
  info.regions = ServedDevice::kRegions;
  info.irqs = InterruptLines::kKinds;
  Append(reply.body, info);
  return reply;
}

DeviceServer::Reply DeviceServer::GetRegionInfo(const Message& message) const {
  Reply reply;
  const auto request = Decode<RegionInfo>(message.body);
  if (!request || request->argsz < sizeof(RegionInfo) ||
      request->index >= ServedDevice::kRegions) {
    reply.error = EINVAL;
    return reply;
  }
  RegionInfo info;
  info.index = request->index;
  info.size = device_.region_size(info.index);
  if (info.size != 0) info.flags = RegionInfo::kRead | RegionInfo::kWrite;
  const bool memory = info.index < ServedDevice::kBars && client_max_fds_ > 0 &&
                      device_.bar(info.index).file.valid();
  if (!memory) {
    Append(reply.body, info);
    return reply;
  }
  info.flags |= RegionInfo::kMmap;
  info.argsz = sizeof info + sizeof(SparseMmap) + sizeof(SparseArea);
  // The descriptor goes with the whole reply only.
  if (request->argsz < info.argsz) {
    Append(reply.body, info);
    return reply;
  }
  info.flags |= RegionInfo::kCaps;
  info.cap_offset = sizeof info;
  SparseMmap sparse;
  sparse.header.id = CapabilityHeader::kSparseMmap;
  sparse.areas = 1;
  Append(reply.body, info);
  Append(reply.body, sparse);
  Append(reply.body, SparseArea{0, info.size});
  reply.fds = {device_.bar(info.index).file.get()};
  return reply;
}

DeviceServer::Reply DeviceServer::GetRegionIoFds(const Message& message) const {
  struct Entry {
    uint64_t offset = 0;
    uint64_t size = 0;
    uint32_t fd = 0;
    uint32_t type = 0;
    uint32_t flags = 0;
    uint32_t padding = 0;
    uint64_t datamatch = 0;
  };
  static_assert(sizeof(Entry) == 40);
  Reply reply;
  const auto request = Decode<RegionIoFds>(message.body);
  if (!request || request->argsz < sizeof(RegionIoFds) || request->flags != 0 ||
      request->index >= ServedDevice::kBars) {
    reply.error = EINVAL;
    return reply;
  }
  std::vector<ServedDevice::Doorbell> doorbells = device_.Doorbells(request->index);
  // No more than the client takes at once; writes to the others are messages, which work everywhere.
  doorbells.resize(std::min<size_t>(doorbells.size(), client_max_fds_));
  RegionIoFds header;
  header.index = request->index;
  header.count = static_cast<uint32_t>(doorbells.size());
  header.argsz = static_cast<uint32_t>(sizeof header + doorbells.size() * sizeof(Entry));
  Append(reply.body, header);
  if (request->argsz < header.argsz) return reply;
  for (const ServedDevice::Doorbell& doorbell : doorbells) {
    Entry entry;
    entry.offset = doorbell.offset;
    entry.size = doorbell.size;
    entry.fd = static_cast<uint32_t>(reply.fds.size());
    reply.fds.push_back(doorbell.eventfd);
    Append(reply.body, entry);
  }
  return reply;
}

DeviceServer::Reply DeviceServer::GetIrqInfo(const Message& message) {
  Reply reply;
  const auto request = Decode<IrqInfo>(message.body);
  if (!request || request->argsz < sizeof(IrqInfo) || request->index >= InterruptLines::kKinds) {
    reply.error = EINVAL;
    return reply;
  }
  IrqInfo info;
  info.flags = IrqInfo::kEventfd;
  info.index = request->index;
  info.count = device_.lines().count(request->index);
  Append(reply.body, info);
  return reply;
}

DeviceServer::Reply DeviceServer::SetInterrupts(Message& message) {
  Reply reply;
  const auto request = Decode<SetIrqs>(message.body);
  reply.error = EINVAL;
  if (!request || request->argsz < sizeof(SetIrqs)) return reply;
  reply.error = device_.lines().Set(*request, std::span(message.body).subspan(sizeof(SetIrqs)),
                                    message.fds);
  return reply;
}

DeviceServer::Reply DeviceServer::ReadRegion(const Message& message) {
  Reply reply;
  const auto access = Decode<RegionAccess>(message.body);
  if (!access || access->count > kMaxTransfer) {
    reply.error = EINVAL;
    return reply;
  }
  reply.body.resize(sizeof *access + access->count);
  std::memcpy(reply.body.data(), &*access, sizeof *access);
  if (!device_.Read(access->region, access->offset, std::span(reply.body).subspan(sizeof *access)))
    reply.error = EINVAL;
  return reply;
}

DeviceServer::Reply DeviceServer::WriteRegion(const Message& message) {
  Reply reply;
  const auto access = Decode<RegionAccess>(message.body);
  const auto data = std::span(message.body).subspan(std::min(message.body.size(), sizeof *access));
  if (!access || access->count != data.size() ||
      !device_.Write(access->region, access->offset, data)) {
    reply.error = EINVAL;
    return reply;
  }
  Append(reply.body, *access);
  return reply;
}

}  // namespace crossbar::vfio_user
