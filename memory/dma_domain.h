// DmaDomain: one translation that devices DMA through: a type1 container, an IOAS, or one vfio-user
// server. This header is the contract that all three fit without special cases in AddressSpace.
//
// Owned by a backend in devices/; registered with AddressSpace::AddDomain. AddressSpace alone calls
// Map, StartUnmap and AwaitUnmap, one at a time, under its lock; an implementation takes no lock
// that is held while AddressSpace is called (lock order, docs/ARCHITECTURE.md).
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

  // How an unmap ended.
  struct Unmapped {
    enum class State : uint8_t {
      kDone,       // `bytes` were unmapped, and no DMA through them is under way any more
      kDead,       // the whole domain is gone (server exited, or was killed and reaped): no DMA either
      kUnrevoked,  // a server that is not ours to kill did not answer: it may still reach the memory
      kFailed,     // `error`; the mapping stands, another try may help
    };
    State state = State::kDone;
    uint64_t bytes = 0;
    std::optional<Error> error;
  };

  virtual ~DmaDomain() = default;

  // For people and the matrix: "type1 container 0", "vfio-user /run/dma.sock".
  virtual std::string name() const = 0;

  // Maps `range` (IOVA == GPA, page-aligned) to `backing`, readable, and writable if the backing is.
  // Returns how, in a word or two for the matrix: "mmap", "dma-buf", "fd", "forwarded".
  // A domain may refuse any BAR backing: it has no handle that it can use, the IOVA is outside its
  // ranges, a limit is reached. The error says why and leaves nothing mapped. It maps RAM or its
  // devices are of no use.
  virtual Result<std::string> Map(GuestRange range, const Backing& backing) = 0;

  // False once the domain is gone (its server exited, its container broke): no DMA through it any
  // more. Asked after a Map that failed; AddressSpace then never calls it again.
  virtual bool alive() const = 0;

  // Begins to unmap exactly one range that Map has mapped. Several may be under way at once, in this
  // and other domains; those that cannot wait (an ioctl) do all of it here.
  virtual UnmapTicket StartUnmap(GuestRange range) = 0;

  // Waits for one, at most until `deadline`, which several share. Each ticket is awaited exactly once.
  // A server of our own that does not answer in time is killed and reaped before this returns kDead.
  // kDone must come with the size that was mapped: less is as bad as a failure (G5).
  virtual Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) = 0;
};

}  // namespace crossbar
