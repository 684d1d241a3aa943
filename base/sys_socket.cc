#include "base/sys_socket.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/sys.h"
#include "base/sys_through.h"

namespace crossbar::sys {
namespace {

using internal::CallFailed;
using internal::RunThrough;

Result<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return Fail("'{}': a socket's path has 1 to {} bytes", path, sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<Fd> UnixSocket() {
  const int fd =
      RunThrough("socket", [] { return ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); });
  if (fd < 0) return CallFailed(fd, "socket");
  return Fd(fd);
}

Result<> SetTimeout(int socket, int option, std::string_view name,
                    std::chrono::microseconds timeout) {
  const timeval time{timeout.count() / 1000000, timeout.count() % 1000000};
  const int result = RunThrough("setsockopt", [&] {
    return ::setsockopt(socket, SOL_SOCKET, option, &time, sizeof time);
  });
  if (result < 0) return CallFailed(result, "setsockopt", name);
  return {};
}

// EAGAIN: for all of `patience` as many waited there as the listener lets wait.
Result<Fd> Connect(const sockaddr_un& address, const std::string& path,
                   std::chrono::microseconds patience) {
  Fd fd = TRY(UnixSocket());
  // connect waits for so long, and nothing else on this socket does: sends never wait.
  TRY(SetTimeout(fd.get(), SO_SNDTIMEO, "SO_SNDTIMEO", patience));
  const int connected = RunThrough("connect", [&] {
    return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  });
  if (connected < 0) return CallFailed(connected, "connect", path);
  return fd;
}

Result<> BindUnix(int socket, const sockaddr_un& address, const std::string& path) {
  const int bound = RunThrough("bind", [&] {
    return ::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  });
  if (bound < 0) return CallFailed(bound, "bind", path);
  return {};
}

}  // namespace

Result<std::pair<Fd, Fd>> SocketPair() {
  int fds[2] = {-1, -1};
  const int made = RunThrough(
      "socketpair", [&] { return ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds); });
  if (made < 0) return CallFailed(made, "socketpair");
  return std::pair(Fd(fds[0]), Fd(fds[1]));
}

Result<Fd> ConnectUnix(const std::string& path, std::chrono::microseconds patience) {
  Result<Fd> connected = Connect(TRY(UnixAddress(path)), path, patience);
  if (connected || connected.error().code() != EAGAIN) return connected;
  return std::unexpected(
      Error(EAGAIN, fmt::format("connect {}: who listens there does not answer: is the server busy "
                                "with another client?", path)));
}

Result<Fd> ListenUnix(const std::string& path) {
  const sockaddr_un address = TRY(UnixAddress(path));
  Fd fd = TRY(UnixSocket());
  Result<> bound = BindUnix(fd.get(), address, path);
  if (!bound && bound.error().code() == EADDRINUSE) {
    // connect refuses a file of another type in the same words as a socket that nobody serves.
    if (!S_ISSOCK(TRY(Lstat(path)).st_mode))
      return std::unexpected(Error(EADDRINUSE, fmt::format("{} is there and is no socket", path)));
    // No need to wait: where others do, somebody serves.
    const Result<Fd> other = Connect(address, path, std::chrono::milliseconds(1));
    if (!other && other.error().code() == ECONNREFUSED) {
      TRY(Unlink(path));
      bound = BindUnix(fd.get(), address, path);
    }
  }
  TRY(std::move(bound));
  const int listening = RunThrough("listen", [&] { return ::listen(fd.get(), 1); });
  if (listening < 0) return CallFailed(listening, "listen", path);
  return fd;
}

Result<Fd> Accept(int listener) {
  const int fd =
      RunThrough("accept4", [&] { return ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC); });
  if (fd < 0) return CallFailed(fd, "accept4");
  return Fd(fd);
}

Result<> Shutdown(int socket) {
  const auto call = [socket] {
    return RunThrough("shutdown", [socket] { return ::shutdown(socket, SHUT_RDWR); });
  };
  int result = call();
  // Once more: a thread that reads there would never end. A connected socket can be shut down, so what
  // failed was a failpoint.
  if (result < 0) result = call();
  if (result < 0) return CallFailed(result, "shutdown");
  return {};
}

bool IsUnixStream(int fd) {
  const auto option = [fd](int name) {
    int value = -1;
    socklen_t size = sizeof value;
    const int result = RunThrough(
        "getsockopt", [&] { return ::getsockopt(fd, SOL_SOCKET, name, &value, &size); });
    return result < 0 ? -1 : value;
  };
  return option(SO_DOMAIN) == AF_UNIX && option(SO_TYPE) == SOCK_STREAM;
}

ssize_t TrySend(int socket, std::span<const iovec> parts, std::span<const int> fds) {
  alignas(cmsghdr) std::byte control[CMSG_SPACE(kMaxMessageFds * sizeof(int))];
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  if (fds.size() > kMaxMessageFds) return -E2BIG;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    std::memset(control, 0, message.msg_controllen);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  return RunThrough(
      "sendmsg", [&] { return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL); });
}

namespace {

ssize_t ReceiveWithFds(int socket, std::span<std::byte> buffer, std::vector<Fd>& fds, bool take,
                       int flags) {
  // Room for all that the kernel can deliver, so that what was not asked for is ours to close.
  alignas(cmsghdr) std::byte control[CMSG_SPACE(kMaxMessageFds * sizeof(int))];
  iovec part{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (take) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
  }
  const ssize_t n = RunThrough(
      "recvmsg", [&] { return ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC); });
  if (n < 0) return n;
  if (!take) return (message.msg_flags & MSG_CTRUNC) != 0 ? -ENOBUFS : n;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return n;
}

}  // namespace

ssize_t TryReceive(int socket, std::span<std::byte> buffer, std::vector<Fd>& fds, bool take) {
  return ReceiveWithFds(socket, buffer, fds, take, MSG_DONTWAIT);
}

ssize_t WaitReceive(int socket, std::span<std::byte> buffer, std::vector<Fd>& fds, bool take) {
  return ReceiveWithFds(socket, buffer, fds, take, 0);
}

Result<> SetReceiveTimeout(int socket, std::chrono::microseconds timeout) {
  return SetTimeout(socket, SO_RCVTIMEO, "SO_RCVTIMEO", timeout);
}

int Poll(std::span<pollfd> fds, int timeout_ms) {
  if (const int injected = failpoints::Hit("poll"); injected != 0) [[unlikely]] return -injected;
  const int result = ::poll(fds.data(), fds.size(), timeout_ms);
  return result >= 0 ? result : -errno;
}

Result<int> GetSeals(int fd) {
  const int seals = RunThrough("fcntl", [&] { return ::fcntl(fd, F_GET_SEALS); });
  if (seals < 0) return CallFailed(seals, "fcntl", "F_GET_SEALS");
  return seals;
}

Result<> Unlink(const std::string& path) {
  const int result = RunThrough("unlink", [&] { return ::unlink(path.c_str()); });
  if (result < 0) return CallFailed(result, "unlink", path);
  return {};
}

bool IsShmem(int fd) {
  struct statfs status {};
  const int result = RunThrough("fstatfs", [&] { return ::fstatfs(fd, &status); });
  return result == 0 && status.f_type == TMPFS_MAGIC;
}

bool IsEventFd(int fd) {
  char target[64];
  const std::string link = fmt::format("/proc/self/fd/{}", fd);
  const ssize_t n =
      RunThrough("readlink", [&] { return ::readlink(link.c_str(), target, sizeof target); });
  return n > 0 && std::string_view(target, static_cast<size_t>(n)) == "anon_inode:[eventfd]";
}

}  // namespace crossbar::sys
