#include "vmm/terminal.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <utility>

#include "base/sys.h"

namespace crossbar {
namespace {

// What a signal handler needs lies in globals.
std::atomic<int> g_terminal = -1;  // while it is raw
termios g_saved;

// tcsetattr is async-signal-safe (POSIX.1-2017, 2.4.3).
void RestoreAndDie(int signal) {
  const int fd = g_terminal.exchange(-1);
  if (fd >= 0) ::tcsetattr(fd, TCSANOW, &g_saved);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

bool KillsByDefault(int signal) {
  switch (signal) {
    case SIGKILL:  // cannot be handled
    case SIGSTOP:
    case SIGTSTP:
    case SIGTTIN:
    case SIGTTOU:
    case SIGCONT:
    case SIGCHLD:
    case SIGURG:
    case SIGWINCH:
      return false;
    default:
      return signal <= SIGSYS || signal >= SIGRTMIN;  // between them are those of libc
  }
}

// What is ignored stays so (nohup). A real-time signal with a handler is the kick of the vCPUs. Signals
// that are blocked because a descriptor takes them never come to the handler.
Result<> HandleFatalSignals() {
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    if (!KillsByDefault(signal)) continue;
    const sys::SignalHandler now = TRY(sys::GetSignalHandler(signal));
    if (now == SIG_IGN || (signal >= SIGRTMIN && now != SIG_DFL)) continue;
    TRY(sys::SetSignalHandler(signal, RestoreAndDie));
  }
  return {};
}

bool InForeground(int fd) { return ::tcgetpgrp(fd) == ::getpgrp(); }

}  // namespace

Result<RawTerminal> RawTerminal::Open(int fd) {
  TRY(HandleFatalSignals());
  return RawTerminal(fd);
}

RawTerminal::RawTerminal(RawTerminal&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), saved_(std::exchange(other.saved_, false)) {}

RawTerminal::~RawTerminal() { Release(); }

Result<bool> RawTerminal::Acquire() {
  if (!InForeground(fd_)) {
    g_terminal = -1;  // the shell's, in a mode of its own
    return false;
  }
  if (!saved_) g_saved = TRY(sys::TerminalMode(fd_));
  saved_ = true;
  termios raw = g_saved;
  ::cfmakeraw(&raw);
  raw.c_oflag = g_saved.c_oflag;  // the log still wants its newlines translated
  g_terminal = fd_;
  TRY(sys::SetTerminalMode(fd_, raw));
  return true;
}

void RawTerminal::Release() {
  if (!std::exchange(saved_, false)) return;
  // In the background it is the shell's, and setting it would stop us (SIGTTOU). Where it is gone,
  // there is nothing to restore.
  if (InForeground(fd_)) (void)sys::SetTerminalMode(fd_, g_saved);
  g_terminal = -1;
}

}  // namespace crossbar
