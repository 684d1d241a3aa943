// WatcherThread: EventWatcher by one thread and an epoll: causes from outside that may take a while.
//
// Owned by Passthrough, one for each device; everything that watches unwatches before it ends. See the interface for who
// calls what.
#pragma once

#include <map>
#include <memory>
#include <thread>

#include "base/fd.h"
#include "base/locks.h"
#include "devices/passthrough/event_watcher.h"

namespace crossbar {

class WatcherThread : public EventWatcher {
 public:
  static Result<std::unique_ptr<WatcherThread>> Start();
  ~WatcherThread() override;

  Result<> Watch(int fd, std::function<void()> handler) override EXCLUDES(mutex_);
  void Unwatch(int fd) override EXCLUDES(mutex_);

 private:
  using Handler = std::shared_ptr<const std::function<void()>>;

  WatcherThread(Fd epoll, Fd stop) : epoll_(std::move(epoll)), stop_(std::move(stop)) {}
  void Run() EXCLUDES(mutex_);
  void Handle(int fd) EXCLUDES(mutex_);

  const Fd epoll_;
  const Fd stop_;  // an eventfd
  Mutex mutex_;
  CondVar idle_;
  std::map<int, Handler> handlers_ GUARDED_BY(mutex_);
  int running_ GUARDED_BY(mutex_) = -1;  // whose handler runs
  std::thread thread_;
};

}  // namespace crossbar
