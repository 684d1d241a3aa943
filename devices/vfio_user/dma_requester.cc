#include "devices/vfio_user/dma_requester.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace crossbar::vfio_user {
namespace {

using Clock = std::chrono::steady_clock;

uint32_t ErrorOf(const std::optional<Message>& reply, const ClientMemory::Wanted& wanted) {
  if (!reply) return wanted() ? EIO : EINTR;
  if ((reply->header.flags & Header::kError) == 0) return 0;
  return reply->header.error != 0 ? reply->header.error : EINVAL;
}

}  // namespace

Result<> ServerSocket::Send(const Header& header, std::span<const std::byte> body,
                            std::span<const std::byte> data, std::span<const int> fds,
                            Deadline deadline) {
  MutexLock lock(mutex);
  return stream.Send(header, body, data, fds, deadline);
}

uint32_t DmaRequester::Read(uint64_t address, std::span<std::byte> data, const Wanted& wanted) {
  while (!data.empty()) {
    const DmaAccess access{address, std::min<uint64_t>(data.size(), max_transfer_)};
    const std::optional<Message> reply = Ask(Command::kDmaRead, access, {}, wanted);
    if (const uint32_t error = ErrorOf(reply, wanted); error != 0) return error;
    if (reply->body.size() != sizeof access + access.count) return EIO;
    std::memcpy(data.data(), reply->body.data() + sizeof access, access.count);
    data = data.subspan(access.count);
    address += access.count;
  }
  return 0;
}

uint32_t DmaRequester::Write(uint64_t address, std::span<const std::byte> data, const Wanted& wanted) {
  while (!data.empty()) {
    const DmaAccess access{address, std::min<uint64_t>(data.size(), max_transfer_)};
    const std::optional<Message> reply =
        Ask(Command::kDmaWrite, access, data.first(access.count), wanted);
    if (const uint32_t error = ErrorOf(reply, wanted); error != 0) return error;
    data = data.subspan(access.count);
    address += access.count;
  }
  return 0;
}

std::optional<Message> DmaRequester::Ask(Command command, const DmaAccess& access,
                                         std::span<const std::byte> data, const Wanted& wanted) {
  const Deadline deadline = Clock::now() + timeout_;
  Header header;
  header.command = static_cast<uint16_t>(command);
  {
    MutexLock lock(mutex_);
    while (busy_ && !closed_) changed_.Wait(mutex_);
    if (closed_ || !wanted()) return std::nullopt;
    busy_ = true;
    header.id = ++id_;
    reply_.reset();
  }
  std::optional<Message> reply = Exchange(header, access, data, deadline);
  MutexLock lock(mutex_);
  busy_ = false;
  // Whoever did not answer, or not this, is not asked again: an answer that comes late would be taken
  // for one to the next question.
  if (!reply) closed_ = true;
  changed_.NotifyAll();
  return reply;
}

std::optional<Message> DmaRequester::Exchange(const Header& header, const DmaAccess& access,
                                              std::span<const std::byte> data, Deadline deadline) {
  if (!socket_->Send(header, Bytes(access), data, {}, deadline)) return std::nullopt;
  if (twin_) {
    Result<std::optional<Message>> reply = socket_->stream.Receive(kMaxMessage, deadline);
    if (!reply || !*reply) return std::nullopt;
    const Header& got = (*reply)->header;
    if (got.type() != Header::kReply || got.id != header.id || got.command != header.command)
      return std::nullopt;
    return std::move(*reply);
  }
  MutexLock lock(mutex_);
  while (!reply_ && !closed_) {
    if (!changed_.WaitUntil(mutex_, deadline)) break;
  }
  return std::exchange(reply_, std::nullopt);
}

bool DmaRequester::Deliver(Message reply) {
  MutexLock lock(mutex_);
  if (!busy_ || reply_ || reply.header.id != id_) return false;
  reply_ = std::move(reply);
  changed_.NotifyAll();
  return true;
}

void DmaRequester::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
  if (twin_) socket_->stream.Shutdown();
  changed_.NotifyAll();
}

}  // namespace crossbar::vfio_user
