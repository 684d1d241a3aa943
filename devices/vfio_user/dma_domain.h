// VfioUserDomain: a DmaDomain whose translation is a device server's list of DMA_MAPs, and the server of
// its DMA_READ and DMA_WRITE.
//
// Owned by a VfioUserBackend. What has a sealed file behind it (guest RAM, BARs of memory) is sent as
// that file, and the server maps it; it gets no other descriptor, since that of a VFIO device would give
// it the device. What has none is announced without one ("forwarded"): the server asks, and the VMM
// copies, within what is mapped and not closing, and never while it waits for that server.
//
// There is no revocation, only the request to unmap (G7). A server that does not answer it, or answers
// wrongly, is ended if it is ours, and so gone; else its connection is, and the domain is lost.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/locks.h"
#include "devices/vfio_user/connection.h"
#include "devices/vfio_user/server_process.h"
#include "memory/address_space.h"
#include "memory/dma_domain.h"

namespace crossbar::vfio_user {

class VfioUserDomain : public DmaDomain {
 public:
  // `connection` outlives the domain. `process`: ours to end, or null.
  VfioUserDomain(Connection& connection, const Version& version,
                 std::shared_ptr<ServerProcess> process)
      : connection_(connection), version_(version), process_(std::move(process)) {}

  // Where the memory is that the server asks for; before the first Map. `space` outlives the
  // connection's threads.
  void Attach(AddressSpace& space) { space_.store(&space, std::memory_order_release); }
  // COMMAND.BME as the device has it: without it the server's requests get ENODEV. Once it is off nothing of what it asked
  // for is copied any more: waits for the part that is under way, one forwarded message at most, or memory that the host
  // cannot get at; for so long as a forward may take. Any thread but the serving one.
  void SetBusMaster(bool on) EXCLUDES(mutex_);

  // DmaDomain.
  std::string name() const override { return connection_.name(); }
  Result<std::string> Map(GuestRange range, const Backing& backing, Deadline deadline) override
      EXCLUDES(mutex_);
  State state() const override;
  UnmapTicket StartUnmap(GuestRange range) override EXCLUDES(mutex_);
  Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) override;

  // Answers one DMA_READ or DMA_WRITE. On the connection's serving thread.
  Connection::Answer Serve(const Message& message) EXCLUDES(mutex_);

 private:
  struct Piece {
    uint64_t size = 0;
    bool writable = false;
    bool file = false;  // a sealed file is behind it: our mapping of it can be copied from and to
  };
  struct Ticket {
    GuestRange range;
    std::optional<uint16_t> call;
    std::optional<Unmapped> result;
  };
  // One copy between the server's data and guest-physical memory.
  struct Transfer {
    GuestRange range;
    bool write = false;         // into the memory
    std::span<std::byte> data;  // not changed where `write`
  };

  Result<> CheckMap(GuestRange range) const EXCLUDES(mutex_);
  Result<> MapOrNothing(GuestRange range, const Backing& backing, bool file, Deadline deadline)
      EXCLUDES(mutex_);
  Result<> SendMap(GuestRange range, const Backing& backing, bool file, Deadline deadline);
  void Send(UnmapTicket id, Deadline deadline);
  void SendLate();
  void Settle(Ticket& ticket, Deadline deadline);
  // The connection is broken: ends the process behind it, if it is ours.
  void End();

  // An errno, or 0.
  uint32_t Run(const Transfer& transfer) EXCLUDES(mutex_);
  uint32_t RunPart(AddressSpace& space, const Transfer& rest, uint64_t& size) EXCLUDES(mutex_);
  std::optional<uint32_t> CheckAccess(GuestRange range, bool write) const EXCLUDES(mutex_);
  std::optional<std::pair<GuestRange, Piece>> FindPiece(Gpa address) const REQUIRES(mutex_);
  uint32_t Copy(AddressSpace& space, Transfer part, bool file, uint64_t& size);

  // Constant after construction.
  Connection& connection_;
  const Version version_;
  const std::shared_ptr<ServerProcess> process_;

  std::atomic<AddressSpace*> space_ = nullptr;
  std::atomic<State> state_ = State::kServing;  // changed once, where a map or an unmap finds the connection broken

  // Of the one thread that maps and unmaps at a time (AddressSpace's lock).
  std::map<UnmapTicket, Ticket> tickets_;
  std::deque<UnmapTicket> in_flight_;
  std::deque<UnmapTicket> unsent_;  // as too many are in flight
  std::optional<Deadline> late_until_;  // since the first of them was sent, until all are settled
  UnmapTicket next_ticket_ = 1;

  mutable Mutex mutex_;
  CondVar idle_;
  bool bus_master_ GUARDED_BY(mutex_) = false;
  bool copying_ GUARDED_BY(mutex_) = false;  // on the serving thread
  std::map<Gpa, Piece> pieces_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::vfio_user
