// EventWatcher: a thread that waits on descriptors for devices whose causes come from outside (the host
// wants the device back, an error, a server that hung up, an EOI to pass on, a fault to inject). Such a handler may run a
// zap and so take seconds: it never runs on the main event loop.
//
// vmm/ implements it. Any thread.
#pragma once

#include <functional>

#include "base/result.h"

namespace crossbar {

class EventWatcher {
 public:
  virtual ~EventWatcher() = default;

  // Runs `handler` on the watcher's thread whenever `fd` (borrowed) is readable; the handler makes it
  // unreadable, or unwatches it. Handlers run one at a time.
  virtual Result<> Watch(int fd, std::function<void()> handler) = 0;

  // When it returns the handler does not run any more and never will. The caller holds no lock that the
  // handler takes, or is itself a handler: those run one at a time, so that there is nothing to wait for.
  virtual void Unwatch(int fd) = 0;
};

}  // namespace crossbar
