// MessageSocket: whole vfio-user messages over one UNIX stream socket.
//
// Owned by a Connection or a device server. One thread sends at a time, and one receives; Shutdown is
// for any thread and ends both. A message that does not come to its end in time, a size or more
// descriptors than can be, or the end of the stream is an error, after which it is of no more use.
#pragma once

#include <array>
#include <chrono>
#include <optional>

#include "devices/vfio_user/protocol.h"

namespace crossbar::vfio_user {

using Deadline = std::chrono::steady_clock::time_point;

class MessageSocket {
 public:
  // Who has begun a message must end it within `stall`, header and body together.
  MessageSocket(Fd socket, std::chrono::milliseconds stall);
  ~MessageSocket() { Discard(std::move(fds_)); }
  MessageSocket(const MessageSocket&) = delete;
  MessageSocket& operator=(const MessageSocket&) = delete;

  // Header, `body` and `data` in one sendmsg, `fds` with its first byte: libvfio-user takes a header or
  // body that comes in two parts for an error. Sets header.size. Only where the socket is full does
  // the rest follow later.
  Result<> Send(Header header, std::span<const std::byte> body, std::span<const std::byte> data,
                std::span<const int> fds, Deadline deadline);

  // The next message, or nothing if none has begun by `deadline`; one that has begun and is not all
  // there by then is an error. No body is larger than `max_body`.
  Result<std::optional<Message>> Receive(size_t max_body, Deadline deadline);

  // From now on a message that brings descriptors is an error, and none of them becomes ours to close.
  void TakeNoDescriptors() { takes_fds_ = false; }

  void Shutdown();
  int fd() const { return socket_.get(); }

 private:
  // False where `deadline` passed.
  Result<bool> Wait(short events, Deadline deadline) const;
  // At most so many bytes into ahead_, of which as much must be free: false where none came by `deadline`.
  Result<bool> Fill(size_t most, Deadline deadline);
  Result<> ReceiveRest(std::span<std::byte> rest, Deadline deadline);
  std::span<std::byte> Ahead() { return std::span(ahead_).subspan(begin_, end_ - begin_); }

  const Fd socket_;
  const std::chrono::milliseconds stall_;
  const bool has_timeout_;  // a receive that waits ends by itself

  // The receiver's. What was read and not taken yet: a small message comes with one system call. The
  // kernel ends a read at the message that brought descriptors, so they belong to the last one in it.
  std::array<std::byte, 512> ahead_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool takes_fds_ = true;
  std::vector<Fd> fds_;
};

}  // namespace crossbar::vfio_user
