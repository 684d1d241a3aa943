// ServerProcess: what the client can do about the process behind a connection when it does not answer.
#pragma once

namespace crossbar::vfio_user {

class ServerProcess {
 public:
  virtual ~ServerProcess() = default;
  // Kills it and waits for its end. True once it has ended, so that nothing it had mapped can be
  // reached by it any more; false where that cannot be had. Again and again is fine. Any thread.
  virtual bool KillAndReap() = 0;
};

}  // namespace crossbar::vfio_user
