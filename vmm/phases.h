// StartupPhases: where the time between exec and the guest goes, for --report. Any thread.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/locks.h"

namespace crossbar {

class StartupPhases {
 public:
  struct Phase {
    const char* name;
    std::chrono::steady_clock::time_point end;
  };

  // What happened since the previous Mark, or since construction, was phase `name` (a literal).
  void Mark(const char* name) {
    const auto now = std::chrono::steady_clock::now();
    MutexLock lock(mutex_);
    phases_.push_back({name, now});
  }

  std::chrono::steady_clock::time_point start() const { return start_; }
  std::vector<Phase> phases() const {
    MutexLock lock(mutex_);
    return phases_;
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  mutable Mutex mutex_;
  std::vector<Phase> phases_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
