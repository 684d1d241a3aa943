// Recorder: the one list of what the fakes of a test were asked to do, in order.
//
// RecordingSlots and every RecordingDomain write into the same list, and a test adds what its
// hardware does, so that order across all of them is asserted by comparing whole vectors. It also
// decides which call of a fake fails. Any thread.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/locks.h"

namespace crossbar::testing {

using Events = std::vector<std::string>;

class Recorder {
 public:
  static constexpr uint64_t kForever = std::numeric_limits<uint64_t>::max();

  // Called with each event, by whom it happened to, before it is in the list. Set while nobody else
  // is about.
  std::function<void(const std::string& event)> on_event;

  // Keep no list, for tests that run long.
  void Forgetful() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    keep_ = false;
  }

  void Note(std::string event) EXCLUDES(mutex_) {
    if (on_event) on_event(event);
    MutexLock lock(mutex_);
    if (keep_) events_.push_back(std::move(event));
  }
  void Hardware(std::string_view step) { Note(fmt::format("hardware {}", step)); }

  // What happened since the last Take.
  Events Take() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return std::exchange(events_, {});
  }

  // --- Faults: every call of a fake that can fail passes Faulty under the name of its site:
  // "slot+", "slot-", "event+", "event-", "dma+", "dma-".

  // Of the calls of `site` from now on ("": of any), the n-th (from 1) and those after it fail,
  // `count` in all.
  void Fail(std::string site, uint64_t n = 1, uint64_t count = 1) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    faults_.push_back({std::move(site), n, count});
  }
  bool Faulty(std::string_view site) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    ++census_[std::string(site)];
    bool faulty = false;
    for (Fault& fault : faults_) {
      if (!fault.site.empty() && fault.site != site) continue;
      ++fault.seen;
      if (fault.seen < fault.first || fault.seen - fault.first >= fault.count) continue;
      ++fired_;
      faulty = true;
    }
    return faulty;
  }
  // How often each site was called since the last Reset, and how many of those calls failed.
  std::map<std::string, uint64_t> census() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return census_;
  }
  uint64_t fired() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return fired_;
  }
  // No fault any more; both counts start again.
  void Reset() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    faults_.clear();
    census_.clear();
    fired_ = 0;
  }

 private:
  struct Fault {
    std::string site;
    uint64_t first = 1;
    uint64_t count = 1;
    uint64_t seen = 0;
  };

  mutable Mutex mutex_;
  bool keep_ GUARDED_BY(mutex_) = true;
  Events events_ GUARDED_BY(mutex_);
  std::vector<Fault> faults_ GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> census_ GUARDED_BY(mutex_);
  uint64_t fired_ GUARDED_BY(mutex_) = 0;
};

}  // namespace crossbar::testing
