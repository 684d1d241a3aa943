#include "base/sys_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/sys.h"
#include "base/sys_through.h"

extern char** environ;

namespace crossbar::sys {
namespace {

using internal::CallFailed;
using internal::RunThrough;

// posix_spawn's two bags of settings.
class SpawnSettings {
 public:
  SpawnSettings() {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;
  ~SpawnSettings() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  // The first error of these calls, which fail only for want of memory.
  int Set(std::span<const InheritedFd> inherited) {
    sigset_t none;
    sigset_t all;
    ::sigemptyset(&none);
    ::sigfillset(&all);
    const auto flags = static_cast<short>(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                          POSIX_SPAWN_SETPGROUP);
    int error = ::posix_spawnattr_setflags(&attributes_, flags);
    // What we block (for a signalfd) and ignore, a child would inherit.
    if (error == 0) error = ::posix_spawnattr_setsigmask(&attributes_, &none);
    if (error == 0) error = ::posix_spawnattr_setsigdefault(&attributes_, &all);
    // Its own group: Ctrl-C on the terminal is for us.
    if (error == 0) error = ::posix_spawnattr_setpgroup(&attributes_, 0);
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO}) {
      if (error == 0)
        error = ::posix_spawn_file_actions_addopen(&actions_, fd, "/dev/null", O_RDWR, 0);
    }
    for (const InheritedFd& one : inherited) {
      // Also clears CLOEXEC, even where both numbers are the same.
      if (error == 0)
        error = ::posix_spawn_file_actions_adddup2(&actions_, one.ours, one.childs);
    }
    return error;
  }

  const posix_spawn_file_actions_t* actions() const { return &actions_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

}  // namespace

Result<pid_t> Spawn(const std::string& program, const std::vector<std::string>& arguments,
                    std::span<const InheritedFd> inherited) {
  SpawnSettings settings;
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = -1;
  const int result = RunThrough("posix_spawn", [&] {
    int error = settings.Set(inherited);
    if (error == 0) {
      error = ::posix_spawn(&child, program.c_str(), settings.actions(), settings.attributes(),
                            argv.data(), environ);
    }
    errno = error;
    return error == 0 ? 0 : -1;
  });
  if (result < 0) return CallFailed(result, "posix_spawn", program);
  return child;
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  // Refused: what there is has to do.
  (void)RunThrough("setrlimit", [&] { return ::setrlimit(RLIMIT_NOFILE, &limit); });
}

Result<Fd> PidFd(pid_t process) {
  const long fd = RunThrough("pidfd_open", [&] { return ::syscall(SYS_pidfd_open, process, 0); });
  if (fd < 0) return CallFailed(fd, "pidfd_open", fmt::format("{}", process));
  return Fd(static_cast<int>(fd));
}

Result<> Kill(pid_t process, int signal) {
  const int result = RunThrough("kill", [&] { return ::kill(process, signal); });
  if (result < 0) return CallFailed(result, "kill", fmt::format("{}", process));
  return {};
}

Result<bool> TryReap(pid_t process) {
  siginfo_t info{};
  const int result = RunThrough("waitid", [&] {
    return ::waitid(P_PID, static_cast<id_t>(process), &info, WEXITED | WNOHANG);
  });
  if (result < 0) return CallFailed(result, "waitid", fmt::format("{}", process));
  return info.si_pid == process;
}

}  // namespace crossbar::sys
