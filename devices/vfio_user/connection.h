// Connection: the client's end of a vfio-user connection: calls with their replies, commands from the
// server with theirs, bounds on both, and the news that the server is lost.
//
// Owned by a VfioUserBackend. Call, Start and Await from any thread, several at once. The server may be
// hostile: whatever breaks the protocol or a time limit breaks the connection, once and for good, with
// one line in the log; every call under way and to come then fails with ENOTCONN.
//
// Two threads of its own: the reader, which takes no lock but this object's own and waits for nobody,
// and the one that serves commands. With a twin socket (the server offers one) commands have a socket of
// their own, and whoever waits for a reply on the first one reads it itself: one thread switch less. The
// reader then only watches for the end. Without one the reader reads everything.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/locks.h"
#include "base/result.h"
#include "devices/vfio_user/message_socket.h"
#include "devices/vfio_user/protocol.h"

namespace crossbar::vfio_user {

class Connection {
 public:
  struct Limits {
    std::chrono::milliseconds reply{5000};  // for one reply, sending included
    // The same where one device's DMA waits for another device, and a zap may wait for that: less than
    // AddressSpace's zap deadline, whose end stops the VM. A reply that has begun by then gets no more.
    std::chrono::milliseconds forward{2000};
    std::chrono::milliseconds stall{2000};  // for one message, from its first byte
    size_t queued_bytes = 4u << 20;         // of commands that are not served yet
    // For slow replies, each more than a tenth of `reply`, all together; what several threads wait for at once counts once,
    // and a quarter of the time that passes is forgiven. One operation of a guest's may be thousands of calls, and the end
    // of the VM waits for it.
    std::chrono::milliseconds slow{20000};
  };

  struct Request {
    Command command = Command::kVersion;
    std::span<const std::byte> body{};
    std::span<const std::byte> data{};  // follows the body
    std::span<const int> fds{};         // borrowed while it is sent
    size_t max_reply = 0;               // bytes of payload
    size_t max_fds = 0;
  };

  // What becomes of a command: an errno, or 0 and the payload of the reply.
  struct Answer {
    uint32_t error = 0;
    std::vector<std::byte> body;
  };
  // Runs on the serving thread, which has no other work: it may wait for other connections (not for this
  // one), bounded by their Limits::forward.
  using Handler = std::function<Answer(const Message&)>;

  // `name` is for people.
  static Result<std::unique_ptr<Connection>> Create(Fd socket, std::string name, Limits limits);
  ~Connection();

  // The first exchange; before anything else, and before Serve.
  Result<Version> Negotiate();
  // Starts the threads. From now on the server's commands go to `handler`.
  Result<> Serve(Handler handler);
  // Ends the threads; returns once the handler does not run and never will. Breaks the connection.
  void Stop() EXCLUDES(mutex_);

  // One command and its reply. Errors: the server's errno; ENOTCONN; ETIMEDOUT, after which the
  // connection is broken; EDEADLK where the server waits, through others, for the caller.
  Result<Message> Call(const Request& request) EXCLUDES(mutex_);
  // The two halves, for pipelines. Every id is awaited once. The time of Await counts from then on.
  Result<uint16_t> Start(const Request& request, Deadline deadline) EXCLUDES(mutex_);
  Result<Message> Await(uint16_t id, Deadline deadline) EXCLUDES(mutex_);

  // Ends everything because of what the server did; the first reason is logged once there is a device to
  // lose: before Serve, whoever asked has it as an error. `quietly`: it is us who want it.
  void Break(const std::string& reason, bool quietly = false) EXCLUDES(mutex_);
  bool broken() const { return broken_.load(std::memory_order_acquire); }
  // Readable from the break on.
  int lost_event() const { return lost_.get(); }
  const std::string& name() const { return name_; }
  const Limits& limits() const { return limits_; }

 private:
  struct Pending {
    uint16_t command = 0;
    size_t max_reply = 0;
    size_t max_fds = 0;
    std::optional<Message> reply;
  };

  Connection(Fd socket, Fd lost, std::string name, Limits limits);

  Result<uint16_t> Register(const Request& request) EXCLUDES(mutex_);
  Result<> SendLocked(MessageSocket& socket, const Header& header, std::span<const std::byte> body,
                      std::span<const std::byte> data, std::span<const int> fds, Deadline deadline)
      EXCLUDES(mutex_);
  bool ReadAsLeader(Deadline deadline) REQUIRES(mutex_);
  Result<Message> Finish(uint16_t id) REQUIRES(mutex_);
  void CountSlow(std::chrono::steady_clock::time_point begun) EXCLUDES(mutex_);
  Error Broken() REQUIRES(mutex_);

  Result<> Deliver(Message message) EXCLUDES(mutex_);
  Result<> DeliverReply(Message message) EXCLUDES(mutex_);
  Result<> QueueCommand(Message message) EXCLUDES(mutex_);
  Result<> ServeCommand(const Message& message);
  void RunReader();
  void RunWatcher();
  void RunTwin();
  void RunQueue() EXCLUDES(mutex_);
  std::optional<Message> NextCommand() EXCLUDES(mutex_);

  // Constant after construction; handler_ and twin_ after Serve.
  MessageSocket socket_;
  const Fd lost_;
  const std::string name_;
  const Limits limits_;
  std::unique_ptr<MessageSocket> twin_;
  Handler handler_;

  std::thread reader_;
  std::thread server_;
  std::atomic<bool> broken_ = false;

  Mutex mutex_;
  CondVar changed_;
  std::string reason_ GUARDED_BY(mutex_);
  bool served_ GUARDED_BY(mutex_) = false;
  bool sending_ GUARDED_BY(mutex_) = false;  // somebody sends on socket_
  bool reading_ GUARDED_BY(mutex_) = false;  // somebody reads socket_ for all; the reader, for good
  uint16_t next_id_ GUARDED_BY(mutex_) = 1;
  std::map<uint16_t, Pending> pending_ GUARDED_BY(mutex_);
  std::deque<Message> commands_ GUARDED_BY(mutex_);
  size_t queued_bytes_ GUARDED_BY(mutex_) = 0;
  std::chrono::steady_clock::duration slow_ GUARDED_BY(mutex_){};  // as of slow_at_
  std::chrono::steady_clock::time_point slow_at_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::vfio_user
