#include "base/sys.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/failpoint.h"

namespace crossbar::sys {
namespace {

// Runs `call` under failpoint `name`, again after EINTR. The result, or -errno.
template <typename Call>
auto Through(std::string_view name, Call&& call) -> decltype(call()) {
  if (const int injected = failpoints::Hit(name); injected != 0) [[unlikely]]
    return static_cast<decltype(call())>(-injected);
  while (true) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return static_cast<decltype(call())>(-errno);
  }
}

std::unexpected<Error> Failed(long result, std::string_view name, std::string_view detail = {}) {
  return std::unexpected(ErrnoError(static_cast<int>(-result), name, detail));
}

}  // namespace

std::string ErrnoText(int code) {
  char buffer[128];
  return ::strerror_r(code, buffer, sizeof buffer);  // the GNU variant: returns the text
}

Error ErrnoError(int code, std::string_view name, std::string_view detail) {
  return Error(code, detail.empty() ? fmt::format("{}: {}", name, ErrnoText(code))
                                    : fmt::format("{} {}: {}", name, detail, ErrnoText(code)));
}

Result<int> Ioctl(int fd, Request request, unsigned long argument) {
  int result = TryIoctl(fd, request, argument);
  while (result == -EINTR) result = TryIoctl(fd, request, argument);
  if (result < 0) return Failed(result, request.name);
  return result;
}

Result<int> Ioctl(int fd, Request request, const void* argument) {
  return Ioctl(fd, request, reinterpret_cast<unsigned long>(argument));
}

Result<Fd> Open(const std::string& path, int flags, mode_t mode) {
  const int fd = Through("open", [&] { return ::open(path.c_str(), flags | O_CLOEXEC, mode); });
  if (fd < 0) return Failed(fd, "open", path);
  return Fd(fd);
}

Result<size_t> Read(int fd, std::span<std::byte> buffer) {
  const ssize_t n = Through("read", [&] { return ::read(fd, buffer.data(), buffer.size()); });
  if (n < 0) return Failed(n, "read");
  return static_cast<size_t>(n);
}

Result<size_t> Write(int fd, std::span<const std::byte> data) {
  const ssize_t n = Through("write", [&] { return ::write(fd, data.data(), data.size()); });
  if (n < 0) return Failed(n, "write");
  return static_cast<size_t>(n);
}

Result<size_t> Pread(int fd, std::span<std::byte> buffer, uint64_t offset) {
  const ssize_t n = Through("pread", [&] {
    return ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(offset));
  });
  if (n < 0) return Failed(n, "pread", fmt::format("{} bytes at {:#x}", buffer.size(), offset));
  return static_cast<size_t>(n);
}

Result<size_t> Pwrite(int fd, std::span<const std::byte> data, uint64_t offset) {
  const ssize_t n = Through("pwrite", [&] {
    return ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
  });
  if (n < 0) return Failed(n, "pwrite", fmt::format("{} bytes at {:#x}", data.size(), offset));
  return static_cast<size_t>(n);
}

Result<std::string> ReadFile(const std::string& path, size_t most) {
  const Fd fd = TRY(Open(path, O_RDONLY));
  std::string text;
  char buffer[16384];
  while (const size_t n = TRY(Read(fd.get(), std::as_writable_bytes(std::span(buffer))))) {
    text.append(buffer, n);
    if (text.size() > most)
      return std::unexpected(Error(EFBIG, fmt::format("{} has more than {} bytes", path, most)));
  }
  return text;
}

Result<> WriteAll(int fd, std::span<const std::byte> data) {
  while (!data.empty()) data = data.subspan(TRY(Write(fd, data)));
  return {};
}

Result<uint64_t> FileSize(int fd) {
  struct stat status {};
  const int result = Through("fstat", [&] { return ::fstat(fd, &status); });
  if (result < 0) return Failed(result, "fstat");
  if (!S_ISREG(status.st_mode)) return Fail("not a regular file");
  return static_cast<uint64_t>(status.st_size);
}

Result<struct stat> Stat(const std::string& path) {
  struct stat status {};
  const int result = Through("stat", [&] { return ::stat(path.c_str(), &status); });
  if (result < 0) return Failed(result, "stat", path);
  return status;
}

Result<struct stat> Lstat(const std::string& path) {
  struct stat status {};
  const int result = Through("lstat", [&] { return ::lstat(path.c_str(), &status); });
  if (result < 0) return Failed(result, "lstat", path);
  return status;
}

Result<> Rename(const std::string& from, const std::string& to) {
  const int result = Through("rename", [&] { return ::rename(from.c_str(), to.c_str()); });
  if (result < 0) return Failed(result, "rename", to);
  return {};
}

Result<void*> Mmap(void* address, size_t size, int protection, int flags, int fd, uint64_t offset) {
  // mmap's result is no signed number, so it does not go through Through.
  if (const int injected = failpoints::Hit("mmap"); injected != 0) [[unlikely]]
    return Failed(-injected, "mmap", fmt::format("{:#x} bytes at {:#x}", size, offset));
  void* result = ::mmap(address, size, protection, flags, fd, static_cast<off_t>(offset));
  if (result == MAP_FAILED)
    return Failed(-errno, "mmap", fmt::format("{:#x} bytes at {:#x}", size, offset));
  return result;
}

Result<> Munmap(void* address, size_t size) {
  const int result = Through("munmap", [&] { return ::munmap(address, size); });
  if (result < 0) return Failed(result, "munmap", fmt::format("{:#x} bytes", size));
  return {};
}

Result<> Madvise(void* address, size_t size, int advice) {
  const int result = Through("madvise", [&] { return ::madvise(address, size, advice); });
  if (result < 0)
    return Failed(result, "madvise", fmt::format("{} of {:#x} bytes", advice, size));
  return {};
}

Result<Fd> MemfdCreate(const char* name, unsigned flags) {
  const int fd =
      Through("memfd_create", [&] { return ::memfd_create(name, flags | MFD_CLOEXEC); });
  if (fd < 0) return Failed(fd, "memfd_create", name);
  return Fd(fd);
}

Result<> Ftruncate(int fd, uint64_t size) {
  const int result =
      Through("ftruncate", [&] { return ::ftruncate(fd, static_cast<off_t>(size)); });
  if (result < 0) return Failed(result, "ftruncate", fmt::format("to {:#x} bytes", size));
  return {};
}

Result<> Fallocate(int fd, int mode, uint64_t offset, uint64_t size) {
  const int result = Through("fallocate", [&] {
    return ::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(size));
  });
  if (result < 0)
    return Failed(result, "fallocate", fmt::format("{:#x} bytes at {:#x}", size, offset));
  return {};
}

Result<> AddSeals(int fd, int seals) {
  const int result = Through("fcntl", [&] { return ::fcntl(fd, F_ADD_SEALS, seals); });
  if (result < 0) return Failed(result, "fcntl", fmt::format("F_ADD_SEALS {:#x}", seals));
  return {};
}

Result<size_t> ReadOwnMemory(std::span<std::byte> to, const void* from) {
  const iovec local{to.data(), to.size()};
  const iovec remote{const_cast<void*>(from), to.size()};
  const ssize_t n = Through("process_vm_readv", [&] {
    return ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0);
  });
  if (n < 0) return Failed(n, "process_vm_readv");
  return static_cast<size_t>(n);
}

Result<size_t> WriteOwnMemory(void* to, std::span<const std::byte> from) {
  const iovec local{const_cast<std::byte*>(from.data()), from.size()};
  const iovec remote{to, from.size()};
  const ssize_t n = Through("process_vm_writev", [&] {
    return ::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0);
  });
  if (n < 0) return Failed(n, "process_vm_writev");
  return static_cast<size_t>(n);
}

Result<Fd> EventFd(unsigned initial, int flags) {
  const int fd = Through("eventfd", [&] { return ::eventfd(initial, flags | EFD_CLOEXEC); });
  if (fd < 0) return Failed(fd, "eventfd");
  return Fd(fd);
}

Result<> SignalEvent(const Fd& event) {
  const uint64_t one = 1;
  const auto bytes = std::as_bytes(std::span(&one, 1));
  // Once more: a thread of ours that it is for would never wake. Its eventfd takes a write, so what
  // failed was a failpoint.
  if (WriteAll(event.get(), bytes)) return {};
  return WriteAll(event.get(), bytes);
}

namespace {

// What ends an AIO request signals an eventfd from within the kernel, which never waits there. The request
// asks whether that eventfd is readable or writable: it always is one, so that it ends at once.
bool SignalByAio(int event) {
  // The process's own, to its end: to give one back takes milliseconds.
  static const aio_context_t context = [] {
    aio_context_t made = 0;
    return Through("io_setup", [&] { return ::syscall(SYS_io_setup, 64, &made); }) == 0 ? made : 0;
  }();
  if (context == 0) return false;
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_POLL;
  request.aio_fildes = static_cast<uint32_t>(event);
  request.aio_buf = POLLIN | POLLOUT;
  request.aio_flags = IOCB_FLAG_RESFD;
  request.aio_resfd = static_cast<uint32_t>(event);
  iocb* const requests[] = {&request};
  const auto submit = [&] {
    return Through("io_submit", [&] { return ::syscall(SYS_io_submit, context, 1, requests); });
  };
  long submitted = submit();
  if (submitted == -EAGAIN) {
    // There is no more room for what came of earlier ones.
    io_event events[64];
    timespec now{};
    (void)Through("io_getevents",
                  [&] { return ::syscall(SYS_io_getevents, context, 0, 64, events, &now); });
    submitted = submit();
  }
  return submitted == 1;
}

}  // namespace

void SignalSharedEvent(const Fd& event) {
  if (SignalByAio(event.get())) return;
  // A kernel without AIO: who fills the counter between these two calls makes us wait after all.
  if (!WaitForRoom(event.get(), 0)) return;
  const uint64_t one = 1;
  (void)Write(event.get(), std::as_bytes(std::span(&one, 1)));
}

Result<uint64_t> DrainEvent(const Fd& event) {
  uint64_t count = 0;
  const Result<size_t> n = Read(event.get(), std::as_writable_bytes(std::span(&count, 1)));
  if (n) return count;
  if (n.error().code() == EAGAIN) return uint64_t{0};
  return std::unexpected(n.error());
}

// Past the door: no failure of it is any reason not to write.
bool WaitForRoom(int fd, int milliseconds) {
  pollfd room{fd, POLLOUT, 0};
  return ::poll(&room, 1, milliseconds) > 0;
}

bool IsReadable(int fd) {
  pollfd watched{fd, POLLIN, 0};
  return Through("poll", [&] { return ::poll(&watched, 1, 0); }) > 0;
}

Result<SignalHandler> GetSignalHandler(int signal) {
  struct sigaction action {};
  const int result = Through("sigaction", [&] { return ::sigaction(signal, nullptr, &action); });
  if (result < 0) return Failed(result, "sigaction");
  return action.sa_handler;
}

Result<> SetSignalHandler(int signal, SignalHandler handler) {
  struct sigaction action {};
  action.sa_handler = handler;
  const int result = Through("sigaction", [&] { return ::sigaction(signal, &action, nullptr); });
  if (result < 0) return Failed(result, "sigaction");
  return {};
}

Result<Fd> SignalFd(const sigset_t& mask) {
  const int fd =
      Through("signalfd", [&] { return ::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK); });
  if (fd < 0) return Failed(fd, "signalfd");
  return Fd(fd);
}

Result<Fd> IntervalTimer(std::chrono::nanoseconds interval) {
  const int fd = Through("timerfd_create", [&] {
    return ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  });
  if (fd < 0) return Failed(fd, "timerfd_create");
  Fd timer(fd);
  const auto seconds = std::chrono::floor<std::chrono::seconds>(interval);
  const timespec period{seconds.count(), (interval - seconds).count()};
  const itimerspec times{period, period};
  const int result = Through("timerfd_settime",
                             [&] { return ::timerfd_settime(fd, 0, &times, nullptr); });
  if (result < 0) return Failed(result, "timerfd_settime");
  return timer;
}

Result<::termios> TerminalMode(int fd) {
  ::termios mode{};
  const int result = Through("tcgetattr", [&] { return ::tcgetattr(fd, &mode); });
  if (result < 0) return Failed(result, "tcgetattr");
  return mode;
}

Result<> SetTerminalMode(int fd, const ::termios& mode) {
  const int result = Through("tcsetattr", [&] { return ::tcsetattr(fd, TCSANOW, &mode); });
  if (result < 0) return Failed(result, "tcsetattr");
  return {};
}

Result<Fd> EpollCreate() {
  const int fd = Through("epoll_create1", [&] { return ::epoll_create1(EPOLL_CLOEXEC); });
  if (fd < 0) return Failed(fd, "epoll_create1");
  return Fd(fd);
}

Result<> EpollControl(int epoll, int operation, int fd, uint32_t events, uint64_t key) {
  ::epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  const int result =
      Through("epoll_ctl", [&] { return ::epoll_ctl(epoll, operation, fd, &event); });
  if (result < 0) return Failed(result, "epoll_ctl", fmt::format("fd {}", fd));
  return {};
}

int EpollWait(int epoll, std::span<::epoll_event> events, int timeout_ms) {
  const int result =
      ::epoll_wait(epoll, events.data(), static_cast<int>(events.size()), timeout_ms);
  return result >= 0 ? result : -errno;
}

}  // namespace crossbar::sys
