#include "devices/vfio_user/message_socket.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

#include "base/sys.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user {
namespace {

using Clock = std::chrono::steady_clock;

// Rounded up, so that a poll does not end just before its deadline.
int MillisecondsUntil(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

}  // namespace

void MessageSocket::Shutdown() { (void)sys::Shutdown(socket_.get()); }

Result<bool> MessageSocket::Wait(short events, Deadline deadline) const {
  while (true) {
    pollfd poll{socket_.get(), events, 0};
    const int timeout = deadline == Deadline::max() ? -1 : MillisecondsUntil(deadline);
    const int n = sys::Poll({&poll, 1}, timeout);
    if (n > 0) return true;
    if (n < 0 && n != -EINTR) return std::unexpected(sys::ErrnoError(-n, "poll"));
    if (n == 0 && Clock::now() >= deadline) return false;
  }
}

Result<> MessageSocket::Send(Header header, std::span<const std::byte> body,
                             std::span<const std::byte> data, std::span<const int> fds,
                             Deadline deadline) {
  header.size = static_cast<uint32_t>(sizeof header + body.size() + data.size());
  const std::array<std::span<const std::byte>, 3> parts = {Bytes(header), body, data};
  size_t sent = 0;
  while (sent < header.size) {
    std::array<iovec, 3> left{};
    size_t count = 0;
    size_t before = sent;
    for (const std::span<const std::byte> part : parts) {
      const size_t skip = std::min(before, part.size());
      before -= skip;
      if (skip == part.size()) continue;
      left[count++] = {const_cast<std::byte*>(part.data()) + skip, part.size() - skip};
    }
    const ssize_t n = sys::TrySend(socket_.get(), std::span(left).first(count),
                                   sent == 0 ? fds : std::span<const int>());
    if (n >= 0) {
      sent += static_cast<size_t>(n);
    } else if (n != -EAGAIN) {
      return std::unexpected(sys::ErrnoError(static_cast<int>(-n), "sendmsg"));
    } else if (!TRY(Wait(POLLOUT, deadline))) {
      return std::unexpected(Error(ETIMEDOUT, "it does not read what it is sent"));
    }
  }
  return {};
}

// All of `rest`, or an error. `fds`: where descriptors may come along.
Result<> MessageSocket::ReceiveRest(std::span<std::byte> rest, std::vector<Fd>* fds,
                                    Deadline deadline) {
  while (!rest.empty()) {
    const ssize_t n = fds != nullptr ? sys::TryReceive(socket_.get(), rest, *fds)
                                     : sys::TryReceive(socket_.get(), rest);
    if (n > 0) {
      rest = rest.subspan(static_cast<size_t>(n));
    } else if (n == 0 || n == -ECONNRESET) {
      return std::unexpected(Error(EPIPE, "it hung up within a message"));
    } else if (n != -EAGAIN) {
      return std::unexpected(sys::ErrnoError(static_cast<int>(-n), "recvmsg"));
    } else if (!TRY(Wait(POLLIN, deadline))) {
      return std::unexpected(Error(ETIMEDOUT, "it stopped within a message"));
    }
  }
  return {};
}

Result<std::optional<Message>> MessageSocket::Receive(size_t max_body, Deadline deadline) {
  Message message;
  std::array<std::byte, sizeof(Header)> raw{};
  ssize_t n = -EAGAIN;
  while (n == -EAGAIN) {
    if (!TRY(Wait(POLLIN, deadline))) return std::nullopt;
    n = sys::TryReceive(socket_.get(), raw, message.fds);
  }
  // Reset: it went with something of ours unread.
  if (n == 0 || n == -ECONNRESET) return std::unexpected(Error(EPIPE, "it hung up"));
  if (n < 0) return std::unexpected(sys::ErrnoError(static_cast<int>(-n), "recvmsg"));
  const Deadline stalled = Clock::now() + stall_;
  TRY(ReceiveRest(std::span(raw).subspan(static_cast<size_t>(n)), &message.fds, stalled));
  std::memcpy(&message.header, raw.data(), sizeof(Header));
  const uint32_t size = message.header.size;
  if (size < sizeof(Header) || size - sizeof(Header) > max_body)
    return Fail("a message of {} bytes ({})", size, CommandName(message.header.command));
  message.body.resize(size - sizeof(Header));
  TRY(ReceiveRest(message.body, nullptr, stalled));
  return message;
}

}  // namespace crossbar::vfio_user
