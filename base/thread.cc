#include "base/thread.h"

#include <pthread.h>
#include <signal.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/failpoint.h"
#include "base/sys.h"

namespace crossbar {

Result<std::thread> StartThread(const std::string& name, std::function<void()> body) {
  int code = failpoints::Hit("pthread_create");
  sigset_t mask;
  sigset_t before;
  ::sigfillset(&mask);
  for (const int own : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT}) ::sigdelset(&mask, own);
  // A thread starts with its maker's mask: no signal comes in between.
  ::pthread_sigmask(SIG_SETMASK, &mask, &before);
  std::thread thread;
  try {
    if (code == 0) {
      thread = std::thread([name = name.substr(0, 15), run = std::move(body)] {
        ::pthread_setname_np(::pthread_self(), name.c_str());
        run();
      });
    }
  } catch (const std::system_error& error) {
    code = error.code().value();
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (code != 0) return std::unexpected(sys::ErrnoError(code, "pthread_create", name));
  return thread;
}

}  // namespace crossbar
