#include "vmm/terminal.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include "base/sys.h"

namespace crossbar {
namespace {

constexpr std::array kFatalSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};

// What a signal handler needs lies in globals.
std::atomic<int> g_terminal = -1;
termios g_saved;
termios g_raw;

// tcsetattr is async-signal-safe (POSIX.1-2017, 2.4.3).
void RestoreAndDie(int signal) {
  const int fd = g_terminal.exchange(-1);
  if (fd >= 0) ::tcsetattr(fd, TCSANOW, &g_saved);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

}  // namespace

Result<RawTerminal> RawTerminal::Enter(int fd) {
  if (::isatty(fd) == 0 || ::tcgetpgrp(fd) != ::getpgrp()) return RawTerminal(false);
  if (::tcgetattr(fd, &g_saved) != 0)
    return std::unexpected(sys::ErrnoError(errno, "tcgetattr"));
  g_raw = g_saved;
  ::cfmakeraw(&g_raw);
  g_raw.c_oflag = g_saved.c_oflag;  // the log still wants its newlines translated
  for (const int signal : kFatalSignals) ::signal(signal, RestoreAndDie);
  g_terminal = fd;
  RawTerminal terminal(true);
  terminal.Resume();
  return terminal;
}

RawTerminal::RawTerminal(RawTerminal&& other) noexcept
    : active_(std::exchange(other.active_, false)) {}

RawTerminal::~RawTerminal() {
  if (!active_) return;
  Suspend();
  g_terminal = -1;
}

void RawTerminal::Suspend() {
  if (active_) ::tcsetattr(g_terminal, TCSADRAIN, &g_saved);
}

void RawTerminal::Resume() {
  if (active_) ::tcsetattr(g_terminal, TCSADRAIN, &g_raw);
}

}  // namespace crossbar
