// ChildServer: a device server of our own, `crossbar serve`, as a child process.
//
// Owned by the VfioUserBackend that speaks to it (as its ServerProcess) and whoever else asks for its pid.
// It ends with its owner: by the end of its socket when we die, by SIGKILL when this is destroyed. It
// inherits the socket and standard error, nothing else. Any thread.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/locks.h"
#include "base/result.h"
#include "devices/vfio_user/client.h"
#include "devices/vfio_user/server_process.h"

namespace crossbar::vfio_user {

class ChildServer : public ServerProcess {
 public:
  struct Options {
    std::string name;                    // for people: "model=dma"
    std::vector<std::string> arguments;  // after `serve`: {"memory", "--size", "16M"}
    std::string program = "/proc/self/exe";
    Connection::Limits limits{};
  };

  // Starts one. `socket` becomes our end of its connection.
  static Result<std::shared_ptr<ChildServer>> Start(const Options& options, Fd& socket);
  // Starts one, and a backend that speaks to it and owns it. An error leaves no child.
  static Result<std::unique_ptr<VfioUserBackend>> StartBackend(const Options& options);
  ~ChildServer() override;

  bool KillAndReap() override EXCLUDES(mutex_);
  pid_t pid() const { return pid_; }

 private:
  ChildServer(pid_t pid, std::string name) : pid_(pid), name_(std::move(name)) {}

  const pid_t pid_;
  const std::string name_;

  Mutex mutex_;  // held while it ends
  Fd pidfd_ GUARDED_BY(mutex_);
  bool reaped_ GUARDED_BY(mutex_) = false;
};

}  // namespace crossbar::vfio_user
