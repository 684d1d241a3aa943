#include "devices/vfio_user/connection.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/sys.h"
#include "base/sys_socket.h"
#include "base/thread.h"
#include "devices/vfio_user/forward_graph.h"

namespace crossbar::vfio_user {
namespace {

using Clock = std::chrono::steady_clock;

ForwardGraph& Forwards() {
  static ForwardGraph graph;
  return graph;
}

// Whose commands this thread serves. A call from such a thread is a forward.
thread_local const Connection* t_serving = nullptr;

// One edge of the graph of forwards, where this thread makes one.
class ForwardEdge {
 public:
  explicit ForwardEdge(const Connection* to)
      : from_(t_serving), refused_(from_ != nullptr && !Forwards().Add(from_, to)) {}
  ForwardEdge(const ForwardEdge&) = delete;
  ForwardEdge& operator=(const ForwardEdge&) = delete;
  ~ForwardEdge() {
    if (from_ != nullptr && !refused_) Forwards().Remove(from_);
  }
  bool forwards() const { return from_ != nullptr; }
  bool refused() const { return refused_; }

 private:
  const Connection* const from_;
  const bool refused_;
};

// Whether it is a command that a server may send.
Result<> CheckCommand(const Message& message) {
  const auto command = static_cast<Command>(message.header.command);
  if (message.header.type() != 0 || (command != Command::kDmaRead && command != Command::kDmaWrite))
    return Fail("{} from a server", CommandName(message.header.command));
  if (!message.fds.empty()) return Fail("descriptors with {}", CommandName(message.header.command));
  return {};
}

}  // namespace

Connection::Connection(Fd socket, Fd lost, std::string name, Limits limits)
    : socket_(std::move(socket), limits.stall),
      lost_(std::move(lost)),
      name_(std::move(name)),
      limits_(limits) {}

Result<std::unique_ptr<Connection>> Connection::Create(Fd socket, std::string name,
                                                       Limits limits) {
  Fd lost = TRY(sys::EventFd());
  return std::unique_ptr<Connection>(
      new Connection(std::move(socket), std::move(lost), std::move(name), limits));
}

Connection::~Connection() { Stop(); }

void Connection::Stop() {
  Break("", true);
  if (reader_.joinable()) reader_.join();
  if (server_.joinable()) server_.join();
}

// --- Beginning -------------------------------------------------------------------------------------

Result<Version> Connection::Negotiate() {
  Version ours;
  ours.minor = 1;
  ours.max_msg_fds = kOurMessageFds;
  ours.max_dma_maps = kDefaultDmaMaps;  // so that a server that takes fewer may say so
  ours.twin_socket = true;
  const std::vector<std::byte> body = EncodeVersion(ours);
  Request request;
  request.command = Command::kVersion;
  request.body = body;
  request.max_reply = 16u << 10;
  request.max_fds = 1;
  Message reply = TRY(Call(request));
  Version theirs = TRY(ParseVersion(reply.body));
  if (theirs.major != ours.major || theirs.minor > ours.minor)
    return Fail("it speaks version {}.{} and not {}.{}", theirs.major, theirs.minor, ours.major,
                ours.minor);
  if (theirs.twin_socket) {
    if (!theirs.twin_fd_index || *theirs.twin_fd_index >= reply.fds.size())
      return Fail("it offers a twin socket and does not send it");
    Fd& twin = reply.fds[*theirs.twin_fd_index];
    // Any other kind of file may let its reader wait for ever, any other kind of socket who closes it.
    if (!sys::IsUnixStream(twin.get())) return Fail("its twin socket is no UNIX stream socket");
    twin_ = std::make_unique<MessageSocket>(std::move(twin), limits_.stall);
  }
  return theirs;
}

Result<> Connection::Serve(Handler handler) {
  handler_ = std::move(handler);
  {
    MutexLock lock(mutex_);
    served_ = true;
    // With no twin the reader reads for everyone, from now on.
    if (!twin_) reading_ = true;
  }
  const auto start = [this]() -> Result<> {
    reader_ = TRY(StartThread("vfio-user read", [this] { twin_ ? RunWatcher() : RunReader(); }));
    server_ = TRY(StartThread("vfio-user serve", [this] { twin_ ? RunTwin() : RunQueue(); }));
    return {};
  };
  const Result<> started = start();
  if (!started) Stop();
  return started;
}

// --- Calls -----------------------------------------------------------------------------------------

Result<Message> Connection::Call(const Request& request) {
  const ForwardEdge edge(this);
  if (edge.refused())
    return std::unexpected(Error(EDEADLK, "that device's DMA waits for this one's"));
  const auto begun = Clock::now();
  const Deadline deadline = begun + (edge.forwards() ? limits_.forward : limits_.reply);
  const uint16_t id = TRY(Start(request, deadline));
  Result<Message> reply = Await(id, deadline);
  CountSlow(begun);
  return reply;
}

void Connection::CountSlow(Clock::time_point begun) {
  const auto now = Clock::now();
  if (now - begun <= limits_.reply / 10) return;
  {
    MutexLock lock(mutex_);
    if (now <= slow_at_) return;
    slow_ = std::max(slow_ - (now - slow_at_) / 4, Clock::duration()) + (now - std::max(begun, slow_at_));
    slow_at_ = now;
    if (slow_ <= limits_.slow) return;
  }
  Break("it answers too slowly for too long");
}

Result<uint16_t> Connection::Start(const Request& request, Deadline deadline) {
  const uint16_t id = TRY(Register(request));
  Header header;
  header.id = id;
  header.command = static_cast<uint16_t>(request.command);
  Result<> sent = SendLocked(socket_, header, request.body, request.data, request.fds, deadline);
  if (sent) return id;
  Break(sent.error().message());
  MutexLock lock(mutex_);
  pending_.erase(id);
  return std::unexpected(Broken());
}

Result<uint16_t> Connection::Register(const Request& request) {
  MutexLock lock(mutex_);
  if (broken()) return std::unexpected(Broken());
  if (pending_.size() > 0x7fff) return std::unexpected(Error(EBUSY, "too many calls at once"));
  while (pending_.contains(next_id_)) ++next_id_;
  Pending& pending = pending_[next_id_];
  pending.command = static_cast<uint16_t>(request.command);
  pending.max_reply = request.max_reply;
  pending.max_fds = request.max_fds;
  return next_id_++;
}

// Sends while nobody else does. On the main socket alone several threads send.
Result<> Connection::SendLocked(MessageSocket& socket, const Header& header,
                                std::span<const std::byte> body, std::span<const std::byte> data,
                                std::span<const int> fds, Deadline deadline) {
  {
    MutexLock lock(mutex_);
    while (sending_ && !broken()) {
      if (!changed_.WaitUntil(mutex_, deadline) && sending_)
        return std::unexpected(Error(ETIMEDOUT, "it does not read what it is sent"));
    }
    if (broken()) return std::unexpected(Broken());
    sending_ = true;
  }
  Result<> sent = socket.Send(header, body, data, fds, deadline);
  MutexLock lock(mutex_);
  sending_ = false;
  changed_.NotifyAll();
  return sent;
}

Result<Message> Connection::Await(uint16_t id, Deadline deadline) {
  std::string late;
  {
    MutexLock lock(mutex_);
    while (!pending_.at(id).reply && !broken()) {
      // The first who waits reads for all, unless the reader does.
      const bool in_time =
          reading_ ? changed_.WaitUntil(mutex_, deadline) : ReadAsLeader(deadline);
      if (in_time || pending_.at(id).reply || broken()) continue;
      late = fmt::format("no answer to {} in time", CommandName(pending_.at(id).command));
      break;
    }
    if (late.empty()) return Finish(id);
    pending_.erase(id);
  }
  Break(late);
  return std::unexpected(Error(ETIMEDOUT, fmt::format("{}: {}", name_, late)));
}

// Reads one message. False where none came in time.
bool Connection::ReadAsLeader(Deadline deadline) {
  reading_ = true;
  mutex_.Unlock();
  Result<std::optional<Message>> message = socket_.Receive(kMaxMessage, deadline);
  const bool in_time = !message || message->has_value();
  Result<> delivered;
  if (!message) {
    delivered = std::unexpected(std::move(message).error());
  } else if (message->has_value()) {
    delivered = Deliver(std::move(**message));
  }
  if (!delivered) Break(delivered.error().message());
  mutex_.Lock();
  reading_ = false;
  // Somebody else may have to read now.
  if (pending_.size() > 1) changed_.NotifyAll();
  return in_time;
}

Result<Message> Connection::Finish(uint16_t id) {
  const auto found = pending_.find(id);
  std::optional<Message> reply = std::move(found->second.reply);
  const uint16_t command = found->second.command;
  pending_.erase(found);
  if (!reply) return std::unexpected(Broken());
  if ((reply->header.flags & Header::kError) == 0) return *std::move(reply);
  // An error without a number is one all the same.
  const int code = reply->header.error != 0 && reply->header.error < 4096
                       ? static_cast<int>(reply->header.error)
                       : EINVAL;
  return std::unexpected(sys::ErrnoError(code, name_, CommandName(command)));
}

Error Connection::Broken() {
  return Error(ENOTCONN, reason_.empty() ? fmt::format("{} is closed", name_)
                                         : fmt::format("{} is lost: {}", name_, reason_));
}

void Connection::Break(const std::string& reason, bool quietly) {
  bool tell = !quietly;
  {
    MutexLock lock(mutex_);
    if (broken()) return;
    broken_.store(true, std::memory_order_release);
    reason_ = reason;
    tell = tell && served_;
    socket_.Shutdown();
    if (twin_) twin_->Shutdown();
    (void)sys::SignalEvent(lost_);
    changed_.NotifyAll();
  }
  // Not under the lock: stderr may be a pipe that nobody reads.
  if (tell) LogWarning("{}: the device is lost: {}", name_, reason);
}

// --- What comes in ---------------------------------------------------------------------------------

Result<> Connection::Deliver(Message message) {
  if (message.header.type() == Header::kReply) return DeliverReply(std::move(message));
  if (message.header.type() == 0 && !twin_ && handler_) return QueueCommand(std::move(message));
  return Fail("a message of flags {:#x} that nobody expects", message.header.flags);
}

Result<> Connection::DeliverReply(Message message) {
  MutexLock lock(mutex_);
  const auto found = pending_.find(message.header.id);
  if (found == pending_.end() || found->second.reply)
    return Fail("a reply with id {:#x} that nobody waits for", message.header.id);
  Pending& pending = found->second;
  if (message.header.command != pending.command)
    return Fail("a reply to {}, not to {}", CommandName(message.header.command),
                CommandName(pending.command));
  if (message.body.size() > pending.max_reply)
    return Fail("{} bytes in reply to {}", message.body.size(), CommandName(pending.command));
  if (message.fds.size() > pending.max_fds)
    return Fail("{} descriptors in reply to {}", message.fds.size(), CommandName(pending.command));
  pending.reply = std::move(message);
  changed_.NotifyAll();
  return {};
}

// Commands wait here, so what is wrong with one is found before it does: descriptors would wait with it,
// and only bytes are counted.
Result<> Connection::QueueCommand(Message message) {
  TRY(CheckCommand(message));
  MutexLock lock(mutex_);
  queued_bytes_ += sizeof(Message) + message.body.size();
  if (queued_bytes_ > limits_.queued_bytes)
    return Fail("a flood of commands: {} wait", commands_.size());
  commands_.push_back(std::move(message));
  changed_.NotifyAll();
  return {};
}

Result<> Connection::ServeCommand(const Message& message) {
  const Answer answer = handler_(message);
  if ((message.header.flags & Header::kNoReply) != 0) return {};
  Header header = message.header;
  header.flags = Header::kReply | (answer.error != 0 ? Header::kError : 0);
  header.error = answer.error;
  const std::span<const std::byte> body =
      answer.error != 0 ? std::span<const std::byte>() : std::span(answer.body);
  const Deadline deadline = Clock::now() + limits_.stall;
  if (twin_) return twin_->Send(header, body, {}, {}, deadline);
  return SendLocked(socket_, header, body, {}, {}, deadline);
}

// --- Threads ---------------------------------------------------------------------------------------

void Connection::RunReader() {
  Result<> going;
  while (going) {
    Result<std::optional<Message>> message = socket_.Receive(kMaxMessage, Deadline::max());
    going = message ? Deliver(std::move(**message))
                    : Result<>(std::unexpected(std::move(message).error()));
  }
  Break(going.error().message());
}

// Whoever waits reads; this only learns of the end where nobody waits.
void Connection::RunWatcher() {
  pollfd poll{socket_.fd(), POLLRDHUP, 0};
  int n = -EINTR;
  while (n == 0 || n == -EINTR) n = sys::Poll({&poll, 1}, -1);
  // Its last words may still be there: they are for those who wait, who then find the end themselves.
  MutexLock lock(mutex_);
  const Deadline deadline = Clock::now() + limits_.stall;
  while (!pending_.empty() && !broken()) {
    if (!changed_.WaitUntil(mutex_, deadline)) break;
  }
  mutex_.Unlock();
  Break("it hung up");
  mutex_.Lock();
}

void Connection::RunTwin() {
  t_serving = this;
  Result<> going;
  while (going) {
    Result<std::optional<Message>> message = twin_->Receive(kMaxMessage, Deadline::max());
    if (!message) return Break(message.error().message());
    going = CheckCommand(**message);
    if (going) going = ServeCommand(**message);
  }
  Break(going.error().message());
}

void Connection::RunQueue() {
  t_serving = this;
  Result<> going;
  while (going) {
    const std::optional<Message> message = NextCommand();
    if (!message) return;
    going = ServeCommand(*message);
  }
  Break(going.error().message());
}

std::optional<Message> Connection::NextCommand() {
  MutexLock lock(mutex_);
  while (commands_.empty() && !broken()) changed_.Wait(mutex_);
  if (broken()) return std::nullopt;
  Message message = std::move(commands_.front());
  commands_.pop_front();
  queued_bytes_ -= sizeof(Message) + message.body.size();
  return message;
}

}  // namespace crossbar::vfio_user
