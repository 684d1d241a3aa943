// DmaRequester: a device server's DMA_READ and DMA_WRITE to its client, one at a time.
//
// Shared by the session and device threads that copy. With a twin socket whoever asks also reads the
// answer there; without one the session reads it among the client's commands and hands it in.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "base/locks.h"
#include "devices/vfio_user/client_memory.h"
#include "devices/vfio_user/message_socket.h"

namespace crossbar::vfio_user {

// A socket that the session and device threads send on.
struct ServerSocket {
  ServerSocket(Fd fd, std::chrono::milliseconds stall) : stream(std::move(fd), stall) {}
  Result<> Send(const Header& header, std::span<const std::byte> body,
                std::span<const std::byte> data, std::span<const int> fds, Deadline deadline)
      EXCLUDES(mutex);

  Mutex mutex;  // held over a send
  MessageSocket stream;
};

class DmaRequester : public ClientMemory::Asker {
 public:
  // `twin`: whether `socket` is the twin.
  DmaRequester(std::shared_ptr<ServerSocket> socket, bool twin, uint64_t max_transfer,
               std::chrono::milliseconds timeout)
      : socket_(std::move(socket)), twin_(twin), max_transfer_(max_transfer), timeout_(timeout) {}

  using Wanted = ClientMemory::Wanted;
  uint32_t Read(uint64_t address, std::span<std::byte> data, const Wanted& wanted) override;
  uint32_t Write(uint64_t address, std::span<const std::byte> data, const Wanted& wanted) override;

  // A reply that came on the main socket. False: nobody waits for it.
  bool Deliver(Message reply) EXCLUDES(mutex_);
  // No answer will come any more.
  void Close() EXCLUDES(mutex_);

 private:
  // Nothing where no answer came, or it was not wanted any more when its turn came.
  std::optional<Message> Ask(Command command, const DmaAccess& access, std::span<const std::byte> data,
                             const Wanted& wanted) EXCLUDES(mutex_);
  std::optional<Message> Exchange(const Header& header, const DmaAccess& access,
                                  std::span<const std::byte> data, Deadline deadline)
      EXCLUDES(mutex_);

  const std::shared_ptr<ServerSocket> socket_;
  const bool twin_;
  const uint64_t max_transfer_;
  const std::chrono::milliseconds timeout_;

  Mutex mutex_;
  CondVar changed_;
  bool closed_ GUARDED_BY(mutex_) = false;
  bool busy_ GUARDED_BY(mutex_) = false;
  uint16_t id_ GUARDED_BY(mutex_) = 0;
  std::optional<Message> reply_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::vfio_user
