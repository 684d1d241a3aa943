// DmaDomain: one translation that devices DMA through: a type1 container, or one vfio-user
// server. This header is the contract that both fit without special cases in AddressSpace, as would an
// IOAS of iommufd.
//
// Owned by a backend in devices/; registered with AddressSpace::AddDomain. AddressSpace alone calls
// Map, StartUnmap and AwaitUnmap, one at a time, under its lock; an implementation takes no lock
// that is held while AddressSpace is called (lock order, docs/ARCHITECTURE.md).
//
// Two kinds of domain. Of a type1 container or an IOAS we hold the mappings ourselves and change
// them by ioctl: an error leaves them as they were, another try may help, and no deadline can be
// honoured, because the kernel pins memory for as long as it takes. A vfio-user server holds what
// it was told to map, and may be hung or hostile: it gets until a deadline, and what it says can
// neither stop the VM nor hold up a zap for longer.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "memory/address.h"
#include "memory/backing.h"

namespace crossbar {

class DmaDomain {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  // Names one unmap that was started and is still to be awaited. What it means is the domain's.
  using UnmapTicket = uint64_t;

  // A domain serves, and then ends in one of two ways. It never comes back.
  enum class State : uint8_t {
    kServing,
    // A server that is not ours to kill closed its socket, broke the protocol, or left a call open
    // whose outcome nobody knows. It may still reach all that it ever mapped.
    kLost,
    // The kernel's object is closed, or the server's process is reaped: no DMA through it any more.
    kGone,
  };

  // How an unmap ended.
  struct Unmapped {
    enum class State : uint8_t {
      // `bytes` of the range were unmapped by this call, and no DMA through them is under way any
      // more. Fewer than it had is a failure, as kFailed.
      kDone,
      // `error`; the mapping stands, another try may help. Only where the mapping is ours (an
      // ioctl): what fails for good stops the VM (G5), and that is not for a server to decide.
      kFailed,
      // The domain has ended, before this or because of it; state() says how. A server that refuses
      // or does not answer in time has ended with that: one of our own is killed and reaped, and so
      // gone; another is lost.
      kEnded,
    };
    State state = State::kDone;
    uint64_t bytes = 0;
    std::optional<Error> error;
  };

  virtual ~DmaDomain() = default;

  // For people and the matrix: "type1 container 0", "vfio-user /run/dma.sock".
  virtual std::string name() const = 0;

  // Maps `range` (IOVA == GPA, page-aligned) to `backing`, readable, and writable if the backing
  // is. Returns how, in a word or two for the matrix: "mmap", "dma-buf", "fd", "forwarded".
  // A domain may refuse any BAR backing: it has no handle that it can use, the IOVA is outside its
  // ranges, a limit is reached. The error says why and leaves nothing mapped. It maps RAM or its
  // devices are of no use. A server that has not answered by `deadline` ends the domain, since
  // nobody knows what it has mapped: ours is killed and gone, another is lost.
  virtual Result<std::string> Map(GuestRange range, const Backing& backing, Deadline deadline) = 0;

  // Why devices of this domain may reach the BAR piece by its address on the host's bus, past the
  // translation and so whatever is mapped: nothing on the way makes such requests go through the
  // root (ACS). The matrix then says *unguarded*. Empty: they may not. Asked when the piece is
  // placed and when the domain joins.
  virtual std::string Unguarded(const Backing&) const { return {}; }

  // Asked after a Map that failed and after an unmap that was kEnded. Once it does not serve,
  // AddressSpace awaits the tickets that are out and calls nothing else. Takes at most a short lock.
  virtual State state() const = 0;

  // Begins to unmap exactly one range that Map has mapped. Never waits for another process: what a
  // server must be told is queued. An ioctl is done here. Several may be under way at once, in this
  // and other domains, but one of a range. After a short or failed one it comes again for the whole
  // range, part of which is unmapped by then.
  virtual UnmapTicket StartUnmap(GuestRange range) = 0;

  // Waits for one, at most until `deadline`, which several share. A reply that is there counts,
  // although the deadline has passed. Each ticket is awaited exactly once, those of a domain that
  // has ended too. Whoever completes tickets (a connection's reader thread) does so without a lock
  // that this thread holds; when the domain ends it completes all of them.
  virtual Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) = 0;
};

}  // namespace crossbar
