#include "devices/vfio_user/child_server.h"

#include <signal.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/sys_process.h"
#include "base/sys_socket.h"

namespace crossbar::vfio_user {
namespace {

constexpr int kChildsSocket = 3;
// Long for a process that was killed; short of the zap deadline.
constexpr auto kDeathTimeout = std::chrono::milliseconds(3000);
constexpr int kPollMs = 100;

}  // namespace

Result<std::shared_ptr<ChildServer>> ChildServer::Start(const Options& options, Fd& socket) {
  std::pair<Fd, Fd> ends = TRY(sys::SocketPair());
  std::vector<std::string> arguments = {"crossbar", "serve"};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  arguments.insert(arguments.end(), {"--socket-fd", std::to_string(kChildsSocket)});
  const sys::InheritedFd inherited{ends.second.get(), kChildsSocket};
  const pid_t pid = TRY(Within(sys::Spawn(options.program, arguments, {&inherited, 1}), [&] {
    return fmt::format("cannot start the server of {}", options.name);
  }));
  std::shared_ptr<ChildServer> child(new ChildServer(pid, options.name));
  Fd pidfd = TRY(sys::PidFd(pid));
  {
    MutexLock lock(child->mutex_);
    child->pidfd_ = std::move(pidfd);
  }
  LogInfo("{}: its server is process {}", options.name, pid);
  socket = std::move(ends.first);
  return child;
}

Result<std::unique_ptr<VfioUserBackend>> ChildServer::StartBackend(const Options& options) {
  Fd socket;
  VfioUserBackend::Options backend;
  backend.process = TRY(Start(options, socket));
  backend.name = options.name;
  backend.limits = options.limits;
  return VfioUserBackend::Create(std::move(socket), std::move(backend));
}

ChildServer::~ChildServer() { KillAndReap(); }

bool ChildServer::KillAndReap() {
  MutexLock lock(mutex_);
  if (reaped_) return true;
  (void)sys::Kill(pid_, SIGKILL);
  const auto deadline = std::chrono::steady_clock::now() + kDeathTimeout;
  while (!reaped_ && std::chrono::steady_clock::now() < deadline) {
    const Result<bool> ended = sys::TryReap(pid_);
    // ECHILD: somebody else's wait has reaped it; it has ended all the same.
    reaped_ = ended ? *ended : ended.error().code() == ECHILD;
    if (reaped_) break;
    // The descriptor may tell of the end a moment before there is something to reap.
    pollfd poll{pidfd_.get(), POLLIN, 0};
    if (sys::Poll({&poll, 1}, kPollMs) != 0)
      std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  if (!reaped_) LogWarning("{}: its server, process {}, does not end", name_, pid_);
  if (reaped_) pidfd_.Reset();
  return reaped_;
}

}  // namespace crossbar::vfio_user
