#include "devices/vfio_user/message_socket.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/sys.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user {
namespace {

using Clock = std::chrono::steady_clock;

// How long the first receive waits by itself before poll does: answers mostly come in that time, and
// then poll is a system call saved.
constexpr auto kFirstWait = std::chrono::milliseconds(50);

// Rounded up, so that a poll does not end just before its deadline.
int MillisecondsUntil(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// The same whether sending or receiving finds it: which of them does is chance.
Error HungUp(bool within_message) {
  return Error(EPIPE, within_message ? "it hung up within a message" : "it hung up");
}

Error ReceiveFailed(ssize_t error) {
  return error == -ENOBUFS ? Error(ENOBUFS, "it passes descriptors where none are taken")
                           : sys::ErrnoError(static_cast<int>(-error), "recvmsg");
}

Error Stopped() { return Error(ETIMEDOUT, "it stopped within a message"); }

}  // namespace

MessageSocket::MessageSocket(Fd socket, std::chrono::milliseconds stall)
    : socket_(std::move(socket)),
      stall_(stall),
      has_timeout_(sys::SetReceiveTimeout(socket_.get(), kFirstWait).has_value()) {}

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
    } else if (n == -EPIPE || n == -ECONNRESET) {
      return std::unexpected(HungUp(sent != 0));
    } else if (n != -EAGAIN) {
      return std::unexpected(sys::ErrnoError(static_cast<int>(-n), "sendmsg"));
    } else if (!TRY(Wait(POLLOUT, deadline))) {
      return std::unexpected(Error(ETIMEDOUT, "it does not read what it is sent"));
    }
  }
  return {};
}

Result<bool> MessageSocket::Fill(size_t most, Deadline deadline) {
  std::ranges::copy(Ahead(), ahead_.begin());
  end_ -= begin_;
  begin_ = 0;
  const std::span<std::byte> room = std::span(ahead_).subspan(end_, most);
  ssize_t n = -EAGAIN;
  if (has_timeout_ && (deadline == Deadline::max() || deadline - Clock::now() > kFirstWait))
    n = sys::WaitReceive(socket_.get(), room, fds_, takes_fds_);
  while (n == -EAGAIN) {
    if (!TRY(Wait(POLLIN, deadline))) return false;
    n = sys::TryReceive(socket_.get(), room, fds_, takes_fds_);
  }
  // Reset: it went with something of ours unread.
  if (n == 0 || n == -ECONNRESET)
    return std::unexpected(HungUp(end_ != 0));
  if (n < 0) return std::unexpected(ReceiveFailed(n));
  end_ += static_cast<size_t>(n);
  // Not only in one message: who begins another one with each that brings descriptors piles them up here.
  if (fds_.size() > kOurMessageFds) return Fail("it passes {} descriptors at once", fds_.size());
  return true;
}

// All of `rest`, or an error.
Result<> MessageSocket::ReceiveRest(std::span<std::byte> rest, Deadline deadline) {
  while (!rest.empty()) {
    const ssize_t n = sys::TryReceive(socket_.get(), rest, fds_, takes_fds_);
    if (!fds_.empty()) return Fail("it passes descriptors within a message");
    if (n > 0) {
      rest = rest.subspan(static_cast<size_t>(n));
    } else if (n == 0 || n == -ECONNRESET) {
      return std::unexpected(HungUp(true));
    } else if (n != -EAGAIN) {
      return std::unexpected(ReceiveFailed(n));
    } else if (!TRY(Wait(POLLIN, deadline))) {
      return std::unexpected(Stopped());
    }
  }
  return {};
}

Result<std::optional<Message>> MessageSocket::Receive(size_t max_body, Deadline deadline) {
  Message message;
  if (begin_ == end_ && !TRY(Fill(ahead_.size(), deadline))) return std::nullopt;
  // One bound for all of it: whoever sends it in drips does not get the time anew with each.
  const Deadline end = std::min(deadline, Clock::now() + stall_);
  while (end_ - begin_ < sizeof(Header)) {
    // No further than the header: its descriptors may be here already, those of the next would join them.
    if (!TRY(Fill(sizeof(Header) - (end_ - begin_), end))) return std::unexpected(Stopped());
  }
  std::memcpy(&message.header, Ahead().data(), sizeof(Header));
  begin_ += sizeof(Header);
  const uint32_t size = message.header.size;
  if (size < sizeof(Header) || size - sizeof(Header) > max_body)
    return Fail("a message of {} bytes ({})", size, CommandName(message.header.command));
  message.body.resize(size - sizeof(Header));
  const std::span<std::byte> here = Ahead().first(std::min(message.body.size(), end_ - begin_));
  std::ranges::copy(here, message.body.begin());
  begin_ += here.size();
  if (begin_ == end_) message.fds = std::exchange(fds_, {});
  if (here.size() < message.body.size())
    TRY(ReceiveRest(std::span(message.body).subspan(here.size()), end));
  return message;
}

}  // namespace crossbar::vfio_user
