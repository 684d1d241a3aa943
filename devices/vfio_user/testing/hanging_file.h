// HangingFile: a file of a file system (FUSE) whose owner does not answer: whoever asks it for anything waits
// until the end of this object, or for kPatience. It needs root, and is on no path.
#pragma once

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/locks.h"
#include "base/result.h"
#include "base/sys.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user::testing {

class HangingFile {
 public:
  // Who waits for FUSE cannot be killed: without a limit a test that asks after all would never end.
  static constexpr auto kPatience = std::chrono::seconds(10);

  // Error: no FUSE here, or no right to mount it.
  static Result<std::unique_ptr<HangingFile>> Make() {
    std::unique_ptr<HangingFile> made(new HangingFile);
    made->fuse_ = TRY(sys::Open("/dev/fuse", O_RDWR));
    const Fd context(static_cast<int>(::syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC)));
    const std::string fuse = std::to_string(made->fuse_.get());
    for (const auto& [key, value] : {std::pair<const char*, const char*>{"fd", fuse.c_str()},
                                     {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"}}) {
      if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, key, value, 0) != 0)
        return Fail("fsconfig {}: {}", key, sys::ErrnoText(errno));
    }
    if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
      return Fail("cannot make a FUSE file system: {}", sys::ErrnoText(errno));
    const Fd mount(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
    made->stop_ = TRY(sys::EventFd());
    made->thread_ = std::thread([raw = made.get()] { raw->Run(); });
    made->file_ = Fd(::openat(mount.get(), "file", O_RDWR | O_CLOEXEC));
    if (!made->file_.valid()) return Fail("cannot open a file of FUSE: {}", sys::ErrnoText(errno));
    MutexLock lock(made->mutex_);
    made->hangs_until_ = std::chrono::steady_clock::now() + kPatience;
    return made;
  }
  ~HangingFile() {
    if (thread_.joinable()) {
      (void)sys::SignalEvent(stop_);
      thread_.join();
    }
    fuse_.Reset();  // all who wait get an error
  }
  HangingFile(const HangingFile&) = delete;
  HangingFile& operator=(const HangingFile&) = delete;

  int fd() const { return file_.get(); }
  // What was asked of it but for what closing it asks.
  std::vector<uint32_t> asked() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return asked_;
  }

 private:
  HangingFile() = default;

  template <typename T>
  void Answer(const fuse_in_header& request, const T& body) {
    std::array<std::byte, sizeof(fuse_out_header) + sizeof(T)> reply;
    const fuse_out_header header{static_cast<uint32_t>(reply.size()), 0, request.unique};
    std::memcpy(reply.data(), &header, sizeof header);
    std::memcpy(reply.data() + sizeof header, &body, sizeof body);
    (void)sys::WriteAll(fuse_.get(), reply);
  }
  void Serve(const fuse_in_header& request) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (hangs_until_) {
      unanswered_.push_back(request.unique);
      const bool closes = request.opcode == FUSE_FLUSH || request.opcode == FUSE_RELEASE ||
                          request.opcode == FUSE_INTERRUPT || request.opcode == FUSE_FORGET;
      if (!closes) asked_.push_back(request.opcode);
      return;
    }
    if (request.opcode == FUSE_INIT) {
      fuse_init_out out{};
      out.major = FUSE_KERNEL_VERSION;
      out.minor = FUSE_KERNEL_MINOR_VERSION;
      out.max_write = 4096;
      Answer(request, out);
    } else if (request.opcode == FUSE_LOOKUP) {
      fuse_entry_out out{};
      out.nodeid = 2;
      out.attr.ino = 2;
      out.attr.mode = S_IFREG | 0666;
      out.attr.nlink = 1;
      out.attr.size = 1 << 20;
      Answer(request, out);
    } else if (request.opcode == FUSE_OPEN) {
      Answer(request, fuse_open_out{});
    }
  }
  void EndPatience() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (!hangs_until_ || std::chrono::steady_clock::now() < *hangs_until_) return;
    for (const uint64_t unique : std::exchange(unanswered_, {})) {
      const fuse_out_header header{sizeof header, -EIO, unique};
      (void)sys::WriteAll(fuse_.get(), std::as_bytes(std::span(&header, 1)));
    }
  }
  void Run() {
    std::vector<std::byte> buffer(1 << 20);
    while (true) {
      std::array<pollfd, 2> polls = {pollfd{fuse_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
      (void)sys::Poll(polls, 100);
      if (polls[1].revents != 0) return;
      EndPatience();
      if (polls[0].revents == 0) continue;
      const Result<size_t> n = sys::Read(fuse_.get(), buffer);
      fuse_in_header request;
      if (!n || *n < sizeof request) continue;
      std::memcpy(&request, buffer.data(), sizeof request);
      Serve(request);
    }
  }

  Fd file_;  // closed last: that asks too
  Fd fuse_;
  Fd stop_;
  std::thread thread_;
  Mutex mutex_;
  std::optional<std::chrono::steady_clock::time_point> hangs_until_ GUARDED_BY(mutex_);
  std::vector<uint64_t> unanswered_ GUARDED_BY(mutex_);
  std::vector<uint32_t> asked_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::vfio_user::testing
