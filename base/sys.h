// The one door for system calls: EINTR, failpoints and errors that name the call and its arguments.
//
// Every system call of Crossbar that can fail goes through here, so that fault injection
// (base/failpoint.h) reaches all of them. Stateless; any thread. All descriptors are CLOEXEC.
// Errors carry the errno value and read "NAME detail: strerror".
#pragma once

#include <linux/types.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/failpoint.h"
#include "base/fd.h"
#include "base/result.h"

struct epoll_event;  // <sys/epoll.h>
struct termios;      // <termios.h>

namespace crossbar::sys {

// An ioctl request with its name, as SYS_REQUEST(KVM_RUN) makes it.
struct Request {
  unsigned long number;
  const char* name;
};
#define SYS_REQUEST(request) \
  ::crossbar::sys::Request { request, #request }

// One ioctl, without a retry and without an Error: the result, or -errno. For KVM_RUN, where EINTR
// is news, and for callers that treat some errno values as answers.
// Inline for KVM_RUN: the CPU mispredicts each return past a system call (docs/decisions/005).
inline int TryIoctl(int fd, Request request, unsigned long argument) {
  if (const int injected = failpoints::HitIoctl(request.name); injected != 0) [[unlikely]]
    return injected == failpoints::kSkip ? 0 : -injected;
  const int result = ::ioctl(fd, request.number, argument);
  return result >= 0 ? result : -errno;
}
inline int TryIoctl(int fd, Request request, const void* argument) {
  return TryIoctl(fd, request, reinterpret_cast<unsigned long>(argument));
}

// One ioctl with EINTR retried.
Result<int> Ioctl(int fd, Request request, unsigned long argument = 0);
Result<int> Ioctl(int fd, Request request, const void* argument);

// As above; `detail` is a callable that returns text on the arguments, run only on failure.
template <typename Detail>
Result<int> Ioctl(int fd, Request request, const void* argument, Detail&& detail);

Result<Fd> Open(const std::string& path, int flags, mode_t mode = 0);
Result<size_t> Read(int fd, std::span<std::byte> buffer);
Result<size_t> Write(int fd, std::span<const std::byte> data);
Result<size_t> Pread(int fd, std::span<std::byte> buffer, uint64_t offset);
Result<size_t> Pwrite(int fd, std::span<const std::byte> data, uint64_t offset);
// All of a file of any kind, such as those in /proc. Errors: EFBIG where it has more than `most` bytes.
Result<std::string> ReadFile(const std::string& path, size_t most = SIZE_MAX);
Result<> WriteAll(int fd, std::span<const std::byte> data);
Result<uint64_t> FileSize(int fd);
// Of what `path` leads to, and of a link itself.
Result<struct stat> Stat(const std::string& path);
Result<struct stat> Lstat(const std::string& path);
Result<> Rename(const std::string& from, const std::string& to);

Result<void*> Mmap(void* address, size_t size, int protection, int flags, int fd, uint64_t offset);
Result<> Munmap(void* address, size_t size);
Result<> Madvise(void* address, size_t size, int advice);
Result<Fd> MemfdCreate(const char* name, unsigned flags);
Result<> Ftruncate(int fd, uint64_t size);
Result<> Fallocate(int fd, int mode, uint64_t offset, uint64_t size);
Result<> AddSeals(int fd, int seals);

// Bytes copied within our own memory by the kernel, fewer where a page is not there (EFAULT where
// none could be): process_vm_readv and process_vm_writev.
Result<size_t> ReadOwnMemory(std::span<std::byte> to, const void* from);
Result<size_t> WriteOwnMemory(void* to, std::span<const std::byte> from);

Result<Fd> EventFd(unsigned initial = 0, int flags = 0);
Result<> SignalEvent(const Fd& event);  // a failure is tried again once, for a thread waits for it
// As SignalEvent, for an eventfd that a stranger shares: never waits, whatever the stranger makes of the counter
// and the file's flags (but for a race where the kernel has no AIO). Where the counter is full, nothing is
// lost: there is a signal already.
void SignalSharedEvent(const Fd& event);
// The counter and 0 afterwards; 0 where a non-blocking eventfd had nothing.
Result<uint64_t> DrainEvent(const Fd& event);
// Whether `fd` can be read without blocking; false where that cannot be found out.
bool IsReadable(int fd);
// Waits for at most `milliseconds` until `fd` takes a page of data without blocking, or write would
// fail at once; false where it still would block.
bool WaitForRoom(int fd, int milliseconds);

// SIG_DFL, SIG_IGN or a function; set without SA_RESTART.
using SignalHandler = void (*)(int);
Result<SignalHandler> GetSignalHandler(int signal);
Result<> SetSignalHandler(int signal, SignalHandler handler);

// The signals of `mask`, which the caller has blocked, as reads of signalfd_siginfo; non-blocking.
Result<Fd> SignalFd(const sigset_t& mask);

// Readable every `interval`, until DrainEvent; non-blocking.
Result<Fd> IntervalTimer(std::chrono::nanoseconds interval);

// How the terminal `fd` treats what is typed and written; set at once.
Result<::termios> TerminalMode(int fd);
Result<> SetTerminalMode(int fd, const ::termios& mode);

Result<Fd> EpollCreate();
Result<> EpollControl(int epoll, int operation, int fd, uint32_t events, uint64_t key);
// -errno, or how many events were stored; EINTR is an answer here.
int EpollWait(int epoll, std::span<::epoll_event> events, int timeout_ms);

// "Permission denied" and the like; thread-safe.
std::string ErrnoText(int code);
// An Error for errno value `code` of call `name`.
Error ErrnoError(int code, std::string_view name, std::string_view detail = {});

template <typename Detail>
Result<int> Ioctl(int fd, Request request, const void* argument, Detail&& detail) {
  Result<int> result = Ioctl(fd, request, argument);
  if (result) return result;
  const int code = result.error().code();
  return std::unexpected(ErrnoError(code, request.name, detail()));
}

}  // namespace crossbar::sys
