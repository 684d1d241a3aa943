#include "vmm/watcher_thread.h"

#include <sys/epoll.h>

#include <array>
#include <cerrno>

#include "base/check.h"
#include "base/log.h"
#include "base/sys.h"
#include "base/thread.h"

namespace crossbar {

Result<std::unique_ptr<WatcherThread>> WatcherThread::Start() {
  Fd epoll = TRY(sys::EpollCreate());
  Fd stop = TRY(sys::EventFd());
  TRY(sys::EpollControl(epoll.get(), EPOLL_CTL_ADD, stop.get(), EPOLLIN,
                        static_cast<uint64_t>(stop.get())));
  std::unique_ptr<WatcherThread> watcher(new WatcherThread(std::move(epoll), std::move(stop)));
  watcher->thread_ = TRY(StartThread("watcher", [raw = watcher.get()] { raw->Run(); }));
  return watcher;
}

WatcherThread::~WatcherThread() {
  if (!thread_.joinable()) return;
  // An eventfd whose counter is 0 takes a write.
  CHECK(sys::SignalEvent(stop_).has_value());
  thread_.join();
}

Result<> WatcherThread::Watch(int fd, std::function<void()> handler) {
  MutexLock lock(mutex_);
  TRY(sys::EpollControl(epoll_.get(), EPOLL_CTL_ADD, fd, EPOLLIN, static_cast<uint64_t>(fd)));
  handlers_[fd] = std::make_shared<const std::function<void()>>(std::move(handler));
  return {};
}

void WatcherThread::Unwatch(int fd) {
  MutexLock lock(mutex_);
  if (handlers_.erase(fd) == 0) return;
  const Result<> removed = sys::EpollControl(epoll_.get(), EPOLL_CTL_DEL, fd, 0, 0);
  if (!removed) LogWarning("cannot unwatch a descriptor: {}", removed.error().message());
  if (std::this_thread::get_id() == thread_.get_id()) return;
  while (running_ == fd) idle_.Wait(mutex_);
}

void WatcherThread::Handle(int fd) {
  Handler handler;
  {
    MutexLock lock(mutex_);
    const auto found = handlers_.find(fd);
    if (found == handlers_.end()) return;  // unwatched after epoll reported it
    handler = found->second;
    running_ = fd;
  }
  (*handler)();
  MutexLock lock(mutex_);
  running_ = -1;
  idle_.NotifyAll();
}

void WatcherThread::Run() {
  std::array<epoll_event, 8> events;
  while (true) {
    const int count = sys::EpollWait(epoll_.get(), events, -1);
    CHECK(count >= 0 || count == -EINTR, "epoll_wait: {}", sys::ErrnoText(-count));
    for (int i = 0; i < count; ++i) {
      const auto fd = static_cast<int>(events[static_cast<size_t>(i)].data.u64);
      if (fd == stop_.get()) return;
      Handle(fd);
    }
  }
}

}  // namespace crossbar
