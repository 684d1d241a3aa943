#include "vmm/event_loop.h"

#include <sys/epoll.h>

#include <array>
#include <cerrno>

#include "base/check.h"
#include "base/sys.h"

namespace crossbar {

Result<EventLoop> EventLoop::Create() { return EventLoop(TRY(sys::EpollCreate())); }

Result<> EventLoop::Add(int fd, std::function<Result<>()> handler) {
  TRY(sys::EpollControl(epoll_.get(), EPOLL_CTL_ADD, fd, EPOLLIN, static_cast<uint64_t>(fd)));
  handlers_[fd] = std::move(handler);
  return {};
}

void EventLoop::Remove(int fd) {
  if (handlers_.erase(fd) == 0) return;
  // Past the door for system calls: it cannot fail for what was added.
  CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr) == 0, "fd {}", fd);
}

Result<> EventLoop::Run() {
  quit_ = false;
  std::array<::epoll_event, 8> events;
  while (!quit_) {
    const int count = sys::EpollWait(epoll_.get(), events, -1);
    if (count == -EINTR) continue;
    if (count < 0) return std::unexpected(sys::ErrnoError(-count, "epoll_wait"));
    for (int i = 0; i < count && !quit_; ++i) {
      const auto it = handlers_.find(static_cast<int>(events[static_cast<size_t>(i)].data.u64));
      if (it == handlers_.end()) continue;  // an earlier handler of this round removed it
      const std::function<Result<>()> handler = it->second;
      TRY(handler());
    }
  }
  return {};
}

}  // namespace crossbar
