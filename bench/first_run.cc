#include "bench/first_run.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>

#include "base/fd.h"
#include "base/kvm_uapi.h"
#include "base/sys.h"

namespace crossbar::bench {
namespace {

constexpr int kTimeoutMs = 30'000;

// The child shares our memory until its exec, so this carries answers back.
struct Child {
  bool stop_at_run;
  const char* path = nullptr;
  char* const* arguments = nullptr;
  int null = -1;
  int listener = -1;
  int error = 0;
  timespec start{};
};

double Seconds(const timespec& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// A descriptor that becomes readable when this thread, or what it turns into, calls KVM_RUN.
int InstallFilter() {
  // The request's upper half is not looked at: KVM_RUN is a small number.
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KVM_RUN, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog filter{std::size(program), program};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
  return static_cast<int>(
      ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter));
}

// On the child's own stack, in our memory: nothing but system calls.
int ChildMain(void* argument) {
  Child& child = *static_cast<Child*>(argument);
  const bool filtered = !child.stop_at_run || (child.listener = InstallFilter()) >= 0;
  // The descriptors are shared up to here, which is how we get the listener.
  if (filtered && ::unshare(CLONE_FILES) == 0 && ::dup2(child.null, 0) == 0 &&
      ::dup2(child.null, 1) == 1 && ::dup2(child.null, 2) == 2) {
    ::clock_gettime(CLOCK_MONOTONIC, &child.start);
    ::execve(child.path, child.arguments, environ);
  }
  child.error = errno;
  ::_exit(127);
}

// Returns when the child has called execve. Not fork: undoing a copy of our memory would be part of
// the child's exec.
Result<pid_t> Start(Child& child) {
  alignas(16) static std::array<std::byte, 64 * 1024> stack;
  const pid_t pid = ::clone(ChildMain, stack.data() + stack.size(),
                            CLONE_VM | CLONE_FILES | CLONE_VFORK | SIGCHLD, &child);
  if (pid < 0) return std::unexpected(sys::ErrnoError(errno, "clone"));
  return pid;
}

Result<int> Reap(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return std::unexpected(sys::ErrnoError(errno, "waitpid"));
  return status;
}

Result<pid_t> StartProgram(const Arguments& arguments, Child& child) {
  std::vector<char*> pointers;
  for (const std::string& argument : arguments)
    pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  const Fd null = TRY(sys::Open("/dev/null", O_RDWR));
  child.path = pointers.front();
  child.arguments = pointers.data();
  child.null = null.get();
  const pid_t pid = TRY(Start(child));
  if (child.error == 0) return pid;
  TRY(Reap(pid));
  return std::unexpected(sys::ErrnoError(child.error, "cannot start", arguments.front()));
}

}  // namespace

Result<double> TimeToFirstRun(const Arguments& arguments) {
  Child child{true};
  const pid_t pid = TRY(StartProgram(arguments, child));
  const Fd listener(child.listener);
  pollfd wait{listener.get(), POLLIN, 0};
  const int ready = ::poll(&wait, 1, kTimeoutMs);
  timespec end{};
  ::clock_gettime(CLOCK_MONOTONIC, &end);
  ::kill(pid, SIGKILL);
  TRY(Reap(pid));
  if (ready != 1 || (wait.revents & POLLIN) == 0)
    return Fail("{} did not come to KVM_RUN", arguments.front());
  return Seconds(end) - Seconds(child.start);
}

Result<int> RunToEnd(const Arguments& arguments) {
  Child child{false};
  const int status = TRY(Reap(TRY(StartProgram(arguments, child))));
  if (!WIFEXITED(status))
    return Fail("{} was killed by signal {}", arguments.front(), WTERMSIG(status));
  return WEXITSTATUS(status);
}

}  // namespace crossbar::bench
