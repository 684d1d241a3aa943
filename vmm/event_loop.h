// EventLoop: the main thread's epoll. Handlers run on the thread that calls Run, one at a time;
// Add, Remove and Quit are called on that thread too, handlers included.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "base/fd.h"
#include "base/result.h"

namespace crossbar {

class EventLoop {
 public:
  static Result<EventLoop> Create();

  // Calls `handler` whenever `fd` is readable or hung up. `fd` is borrowed until Remove.
  Result<> Add(int fd, std::function<Result<>()> handler);
  void Remove(int fd);

  // Until a handler calls Quit, or fails.
  Result<> Run();
  void Quit() { quit_ = true; }

 private:
  explicit EventLoop(Fd epoll) : epoll_(std::move(epoll)) {}

  Fd epoll_;
  std::map<int, std::function<Result<>()>> handlers_;
  bool quit_ = false;
};

}  // namespace crossbar
