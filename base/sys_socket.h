// UNIX stream sockets and the descriptors that travel over them: system calls as in base/sys.h.
//
// Stateless; any thread. All descriptors are CLOEXEC, those received too. Nothing here waits except
// ConnectUnix, Accept, Poll and WaitReceive, and nothing raises SIGPIPE. Calls named Try return -errno
// where they fail, since EAGAIN is an answer there.
#pragma once

#include <poll.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <chrono>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace crossbar::sys {

// The most descriptors that the kernel lets one message carry (SCM_MAX_FD).
inline constexpr size_t kMaxMessageFds = 253;

Result<std::pair<Fd, Fd>> SocketPair();
// Waits for `patience` where others wait to be accepted already. Errors: ENOENT and ENOTSOCK or
// ECONNREFUSED, where nobody listens there; EAGAIN, where who listens took nobody in that time.
Result<Fd> ConnectUnix(const std::string& path,
                       std::chrono::microseconds patience = std::chrono::seconds(5));
// Listens at `path`. A socket file that nobody serves any more is replaced; EADDRINUSE where somebody
// does.
Result<Fd> ListenUnix(const std::string& path);
Result<Fd> Accept(int listener);
Result<> Shutdown(int socket);  // a failure is tried again once, for a thread waits for it
// Whether `fd` is a UNIX stream socket: no other end can make its owner wait in close.
bool IsUnixStream(int fd);

// As much of `parts` as fits, `fds` with its first byte.
ssize_t TrySend(int socket, std::span<const iovec> parts, std::span<const int> fds);
// What is there; 0 where the other end hung up. Descriptors that come along are appended to `fds`, also
// where none are expected: the kernel would close them in our place, and that may wait for their sender.
// Not so with `take` false: the kernel does, which asks fewer file systems than close, and -ENOBUFS says so.
ssize_t TryReceive(int socket, std::span<std::byte> buffer, std::vector<Fd>& fds, bool take = true);
// As TryReceive, but waits: until something comes, or for the socket's timeout (-EAGAIN then).
ssize_t WaitReceive(int socket, std::span<std::byte> buffer, std::vector<Fd>& fds, bool take = true);
Result<> SetReceiveTimeout(int socket, std::chrono::microseconds timeout);
// Events, 0 after `timeout_ms` (-1: never), or -errno.
int Poll(std::span<pollfd> fds, int timeout_ms);

// F_GET_SEALS; EINVAL for what cannot be sealed. Does not ask the file system, so it never hangs.
Result<int> GetSeals(int fd);
Result<> Unlink(const std::string& path);
// Whether `file`, which has seals, is shared memory: not of huge pages, which have seals too.
bool IsShmem(int file);
// Whether `fd` is an eventfd.
bool IsEventFd(int fd);

}  // namespace crossbar::sys
