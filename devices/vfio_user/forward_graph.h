// ForwardGraph: which server's DMA the VMM is just forwarding to which other server.
//
// A server that has sent DMA_WRITE may read no command until that is answered. If A's DMA goes to B and
// B's to A, both would wait for ever. So each forward is an edge here while it lasts, and one that
// would close a cycle is refused at once: its DMA fails, the other goes on. A server does one forward
// at a time (its connection has one serving thread), so that a walk is a list, not a search.
//
// Process-wide; any thread.
#pragma once

#include <map>

#include "base/locks.h"

namespace crossbar::vfio_user {

// Names an end of a forward; never followed.
using Forwarder = const void*;

class ForwardGraph {
 public:
  // False, and no edge, where `to` already waits for `from`, directly or through others.
  bool Add(Forwarder from, Forwarder to) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    for (Forwarder at = to; at != nullptr;) {
      if (at == from) return false;
      const auto next = edges_.find(at);
      at = next == edges_.end() ? nullptr : next->second;
    }
    edges_[from] = to;
    return true;
  }
  void Remove(Forwarder from) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    edges_.erase(from);
  }

 private:
  Mutex mutex_;
  std::map<Forwarder, Forwarder> edges_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::vfio_user
