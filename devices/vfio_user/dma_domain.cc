#include "devices/vfio_user/dma_domain.h"

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/log.h"
#include "base/sys.h"
#include "base/sys_socket.h"
#include "memory/guarded_copy.h"

namespace crossbar::vfio_user {
namespace {

using Clock = std::chrono::steady_clock;

// Unmaps that are sent before the first answer is read. More could fill the server's socket with
// answers, and then ours with requests. What is more is sent as answers come.
constexpr size_t kMaxInFlight = 64;
// A request to unmap is a few bytes, for which a server that reads has always room. One that does not
// read may hold up the start of other unmaps for so long, once: then it is lost.
constexpr auto kSendPatience = std::chrono::milliseconds(250);

// Its size stays, so that whoever maps it cannot be made to fault by whoever holds it too.
bool IsSealed(const std::optional<Backing::Handle>& file) {
  if (!file) return false;
  const Result<int> seals = sys::GetSeals(file->fd);
  return seals && (*seals & F_SEAL_SHRINK) != 0;
}

}  // namespace

// --- Map and unmap ---------------------------------------------------------------------------------

Result<> VfioUserDomain::CheckMap(GuestRange range) const {
  const uint64_t page = uint64_t{1} << std::countr_zero(version_.page_sizes);
  if (!IsAligned(range.start.value(), page) || !IsAligned(range.size, page))
    return Fail("it maps multiples of {:#x} bytes only", page);
  MutexLock lock(mutex_);
  const uint64_t most = version_.max_dma_maps.value_or(kDefaultDmaMaps);
  if (pieces_.size() >= most) return Fail("it takes {} mappings at most", most);
  return {};
}

DmaDomain::State VfioUserDomain::state() const {
  return state_.load(std::memory_order_acquire);
}

Result<std::string> VfioUserDomain::Map(GuestRange range, const Backing& backing,
                                        Deadline deadline) {
  const bool file = IsSealed(backing.file);
  const Result<> mapped = MapOrNothing(range, backing, file, deadline);
  if (mapped) return file ? "fd" : "forwarded";
  // It may have mapped what it did not confirm, and has what was mapped before.
  if (connection_.broken()) End();
  return std::unexpected(mapped.error());
}

Result<> VfioUserDomain::MapOrNothing(GuestRange range, const Backing& backing, bool file,
                                      Deadline deadline) {
  TRY(CheckMap(range));
  {
    // The server may ask as soon as it knows, so the books come first.
    MutexLock lock(mutex_);
    pieces_[range.start] = {range.size, backing.writable, file};
  }
  Result<> sent = SendMap(range, backing, file, deadline);
  if (sent) return sent;
  MutexLock lock(mutex_);
  pieces_.erase(range.start);
  return sent;
}

Result<> VfioUserDomain::SendMap(GuestRange range, const Backing& backing, bool file,
                                 Deadline deadline) {
  DmaMapRequest map;
  map.flags = DmaMapRequest::kRead | (backing.writable ? DmaMapRequest::kWrite : 0);
  map.address = range.start.value();
  map.size = range.size;
  Connection::Request request;
  request.command = Command::kDmaMap;
  request.body = Bytes(map);
  if (file) {
    map.offset = backing.file->offset;
    request.fds = {&backing.file->fd, 1};
  }
  const Deadline bound = std::min(deadline, Clock::now() + connection_.limits().reply);
  const uint16_t call = TRY(connection_.Start(request, bound));
  TRY(connection_.Await(call, bound));
  return {};
}

DmaDomain::UnmapTicket VfioUserDomain::StartUnmap(GuestRange range) {
  {
    MutexLock lock(mutex_);
    pieces_.erase(range.start);
  }
  const UnmapTicket id = next_ticket_++;
  tickets_[id].range = range;
  if (in_flight_.size() < kMaxInFlight) {
    Send(id, Clock::now() + kSendPatience);
  } else {
    unsent_.push_back(id);
  }
  return id;
}

void VfioUserDomain::Send(UnmapTicket id, Deadline deadline) {
  Ticket& ticket = tickets_.at(id);
  DmaUnmapRequest unmap;
  unmap.address = ticket.range.start.value();
  unmap.size = ticket.range.size;
  Connection::Request request;
  request.command = Command::kDmaUnmap;
  request.body = Bytes(unmap);
  request.max_reply = sizeof unmap;
  const Result<uint16_t> call = connection_.Start(request, deadline);
  if (!call) return;
  ticket.call = *call;
  in_flight_.push_back(id);
}

// What had to queue has a moment of its own: the time of the zap may be gone by the turn of this server, for one that does
// not answer, and those that were sent at once have been answered meanwhile.
void VfioUserDomain::SendLate() {
  if (unsent_.empty()) return;
  if (!late_until_) late_until_ = Clock::now() + kSendPatience;
  while (!unsent_.empty() && in_flight_.size() < kMaxInFlight) {
    Send(unsent_.front(), *late_until_);
    unsent_.pop_front();
  }
}

DmaDomain::Unmapped VfioUserDomain::AwaitUnmap(UnmapTicket id, Deadline deadline) {
  const auto found = tickets_.find(id);
  Ticket& ticket = found->second;
  while (!unsent_.empty() && unsent_.front() <= id) {
    if (!in_flight_.empty()) Settle(tickets_.at(in_flight_.front()), deadline);
    SendLate();
  }
  Settle(ticket, deadline);
  SendLate();
  if (unsent_.empty() && in_flight_.empty()) late_until_.reset();
  Unmapped result = std::move(*ticket.result);
  tickets_.erase(found);
  return result;
}

void VfioUserDomain::Settle(Ticket& ticket, Deadline deadline) {
  if (ticket.result) return;
  ticket.result = Unmapped{Unmapped::State::kEnded, 0, std::nullopt};
  if (!ticket.call) return End();
  if (late_until_) deadline = std::max(deadline, *late_until_);
  // Tickets are settled in the order of their start, and so are calls answered.
  std::erase_if(in_flight_, [&](UnmapTicket id) { return &tickets_.at(id) == &ticket; });
  const Result<Message> reply = connection_.Await(*ticket.call, deadline);
  // libvfio-user echoes the request, some answer with a header alone.
  const auto echo = reply ? Decode<DmaUnmapRequest>(reply->body) : std::nullopt;
  if (reply && (reply->body.empty() || (echo && echo->address == ticket.range.start.value() &&
                                        echo->size == ticket.range.size))) {
    ticket.result = Unmapped{Unmapped::State::kDone, ticket.range.size, std::nullopt};
    return;
  }
  // Told that it did not, or something else, there is no telling what it has.
  connection_.Break(reply ? fmt::format("a wrong answer to DMA_UNMAP of {}", ticket.range)
                          : reply.error().message());
  End();
}

void VfioUserDomain::End() {
  if (state() != State::kServing) return;
  const bool reaped = process_ && process_->KillAndReap();
  state_.store(reaped ? State::kGone : State::kLost, std::memory_order_release);
}

// --- The server's own accesses ---------------------------------------------------------------------

Connection::Answer VfioUserDomain::Serve(const Message& message) {
  const bool write = static_cast<Command>(message.header.command) == Command::kDmaWrite;
  const auto access = Decode<DmaAccess>(message.body);
  if (!access || access->count == 0 || access->count > kMaxTransfer) return {EINVAL, {}};
  if (message.body.size() != sizeof(DmaAccess) + (write ? access->count : 0)) return {EINVAL, {}};
  const auto range = GuestRange::Checked(access->address, access->count);
  if (!range) return {EFAULT, {}};
  Connection::Answer answer;
  answer.body.resize(sizeof(DmaAccess) + (write ? 0 : access->count));
  std::memcpy(answer.body.data(), &*access, sizeof(DmaAccess));
  Transfer transfer{*range, write, std::span(answer.body).subspan(sizeof(DmaAccess))};
  if (write) {
    // Only read from; a span of its own type would need a second Transfer.
    auto* const data = const_cast<std::byte*>(message.body.data()) + sizeof(DmaAccess);
    transfer.data = {data, access->count};
  }
  answer.error = Run(transfer);
  if (answer.error != 0) {
    static RateLimit limit;
    LogGuest(limit, "{}: {} of {} fails: {}", name(), CommandName(message.header.command), *range,
             sys::ErrnoText(static_cast<int>(answer.error)));
  }
  return answer;
}

void VfioUserDomain::SetBusMaster(bool on) {
  // Longer than a forward takes no copy, unless the host's memory hangs: then this one must not, too (G5).
  const Deadline deadline = Clock::now() + connection_.limits().forward + connection_.limits().stall;
  MutexLock lock(mutex_);
  bus_master_ = on;
  while (!bus_master_ && copying_ && idle_.WaitUntil(mutex_, deadline)) {
  }
}

// No part begins later than a forward may end: the server may do nothing else until it is answered.
uint32_t VfioUserDomain::Run(const Transfer& transfer) {
  AddressSpace* const space = space_.load(std::memory_order_acquire);
  if (space == nullptr) return EFAULT;
  if (const auto error = CheckAccess(transfer.range, transfer.write)) return *error;
  const Deadline deadline = Clock::now() + connection_.limits().forward;
  for (uint64_t done = 0, size = 0; done < transfer.range.size; done += size) {
    if (Clock::now() > deadline) return ETIMEDOUT;
    size = transfer.range.size - done;
    const Transfer rest{{transfer.range.start + done, size}, transfer.write, transfer.data.subspan(done)};
    if (const uint32_t error = RunPart(*space, rest, size); error != 0) return error;
  }
  return 0;
}

// The first `size` bytes, less where that is more than one access.
uint32_t VfioUserDomain::RunPart(AddressSpace& space, const Transfer& rest, uint64_t& size) {
  std::optional<std::pair<GuestRange, Piece>> piece;
  {
    MutexLock lock(mutex_);
    if (!bus_master_) return ENODEV;
    piece = FindPiece(rest.range.start);
    if (!piece) return EFAULT;
    copying_ = true;
  }
  size = std::min(size, piece->first.size - (rest.range.start - piece->first.start));
  const uint32_t error = connection_.broken() ? ENOTCONN : Copy(space, rest, piece->second.file, size);
  MutexLock lock(mutex_);
  copying_ = false;
  idle_.NotifyAll();
  return error;
}

std::optional<std::pair<GuestRange, VfioUserDomain::Piece>> VfioUserDomain::FindPiece(
    Gpa address) const {
  auto after = pieces_.upper_bound(address);
  if (after == pieces_.begin()) return std::nullopt;
  const auto& [start, piece] = *std::prev(after);
  const GuestRange range{start, piece.size};
  if (!range.Contains(address)) return std::nullopt;
  return std::pair(range, piece);
}

// All of it or nothing: a request that is not mapped to its last byte changes no byte.
std::optional<uint32_t> VfioUserDomain::CheckAccess(GuestRange range, bool write) const {
  MutexLock lock(mutex_);
  if (!bus_master_) return ENODEV;
  for (uint64_t done = 0; done < range.size;) {
    const auto piece = FindPiece(range.start + done);
    if (!piece || (write && !piece->second.writable)) return EFAULT;
    done += piece->first.size - (range.start + done - piece->first.start);
  }
  return std::nullopt;
}

// A piece is pinned for one access at a time, so that its zap waits for one forwarded message at most.
uint32_t VfioUserDomain::Copy(AddressSpace& space, Transfer part, bool file, uint64_t& size) {
  const auto shorten = [&](uint64_t most) {
    size = std::min(size, most);
    part.range.size = size;
    part.data = part.data.first(size);
  };
  shorten(kOurTransfer);
  const std::optional<PieceTable::Pin> pin = space.TryPin(part.range);
  if (!pin) return EFAULT;
  const Backing& backing = pin->place().backing;
  const bool memory = backing.kind == Backing::Kind::kRam || file;
  Result<> copied;
  if (memory && backing.host != Hva()) {
    copied = part.write ? GuardedWrite(backing.host, part.data) : GuardedRead(backing.host, part.data);
  } else if (backing.owner != nullptr) {
    shorten(backing.owner->largest_access());
    copied = part.write ? backing.owner->WriteBar(backing.bar, backing.bar_offset, part.data)
                        : backing.owner->ReadBar(backing.bar, backing.bar_offset, part.data);
  } else {
    return EFAULT;
  }
  if (copied) return 0;
  return copied.error().code() > 0 ? static_cast<uint32_t>(copied.error().code()) : EIO;
}

}  // namespace crossbar::vfio_user
