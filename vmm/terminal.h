// RawTerminal: a person's terminal, raw while it is ours and as it was otherwise, whichever way the
// process ends: return, a fatal signal or CHECK. (SIGKILL alone gives nobody a chance.)
//
// It is ours while we are in its foreground. Job control changes that: no signal tells of a shell that
// puts a running job into the foreground, so whoever owns this asks (Acquire).
// One at a time; main thread.
#pragma once

#include "base/result.h"

namespace crossbar {

class RawTerminal {
 public:
  // `fd` is a terminal, and is left as it is until Acquire.
  static Result<RawTerminal> Open(int fd);
  RawTerminal(RawTerminal&& other) noexcept;
  RawTerminal& operator=(RawTerminal&&) = delete;
  ~RawTerminal();

  // Raw, if we are in the foreground; again, if somebody undid it. Whether it is ours now.
  Result<bool> Acquire();
  // The terminal as it was before Acquire.
  void Release();

 private:
  explicit RawTerminal(int fd) : fd_(fd) {}
  int fd_;  // -1 once moved from
  bool saved_ = false;  // g_saved is how it was before us
};

}  // namespace crossbar
