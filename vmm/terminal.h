// RawTerminal: a person's terminal, raw while this lives and as it was afterwards, whichever way the
// process ends: return, a fatal signal or CHECK. (SIGKILL alone gives nobody a chance.)
// One at a time; main thread.
#pragma once

#include "base/result.h"

namespace crossbar {

class RawTerminal {
 public:
  // Does nothing, and active() is false, where `fd` is no terminal or we are in its background.
  static Result<RawTerminal> Enter(int fd);
  RawTerminal(RawTerminal&& other) noexcept;
  RawTerminal& operator=(RawTerminal&&) = delete;
  ~RawTerminal();

  bool active() const { return active_; }
  // For a stop by job control: the terminal as it was, until Resume.
  void Suspend();
  void Resume();

 private:
  explicit RawTerminal(bool active) : active_(active) {}
  bool active_;
};

}  // namespace crossbar
