// ClientMemory: the memory that a vfio-user client lets a device reach: its DMA_MAPs, and copies in and out
// of them.
//
// The server's side. Owned by a DeviceServer. The server's thread maps and unmaps; device threads copy.
// An unmap returns when no copy touches the mapping any more, as the protocol asks. A copy goes on while it
// is wanted: whoever ends that, a reset or the end of bus mastering, then awaits what is under way. The
// client may be hostile: memory that may fault is copied through the kernel, and what is no memory is not
// mapped.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>

#include "base/locks.h"
#include "devices/vfio_user/protocol.h"
#include "memory/host_mapping.h"

namespace crossbar::vfio_user {

class ClientMemory {
 public:
  // A process may have 65530 mappings (vm.max_map_count); without one to spare malloc and munmap fail.
  static constexpr size_t kMaxMappings = 32000;

  // Whether to go on with a copy; takes no lock.
  using Wanted = std::function<bool()>;

  // Reaches what came without a file: by asking the client.
  class Asker {
   public:
    virtual ~Asker() = default;
    // An errno, or 0.
    virtual uint32_t Read(uint64_t address, std::span<std::byte> data, const Wanted& wanted) = 0;
    virtual uint32_t Write(uint64_t address, std::span<const std::byte> data, const Wanted& wanted) = 0;
  };
  void SetAsker(std::shared_ptr<Asker> asker) EXCLUDES(mutex_);

  // An errno, or 0: EINVAL what makes no sense, EEXIST an overlap, ENOSPC too many, ENODEV a file
  // that is no memory, what mmap said. `file` is borrowed, and -1 where there is none.
  uint32_t Map(const DmaMapRequest& request, int file) EXCLUDES(mutex_);
  // ENOENT: no such mapping; it must be a whole one. EINVAL: unknown flags.
  uint32_t Unmap(const DmaUnmapRequest& request) EXCLUDES(mutex_);
  void Clear() EXCLUDES(mutex_);

  // All of `data`, or an errno: EFAULT not mapped, or not for this; EINTR not wanted any more.
  uint32_t Read(uint64_t address, std::span<std::byte> data, const Wanted& wanted = Always) EXCLUDES(mutex_);
  uint32_t Write(uint64_t address, std::span<const std::byte> data, const Wanted& wanted = Always)
      EXCLUDES(mutex_);
  // When it returns, no copy that is not wanted any more touches mapped memory. What the client was asked for
  // is awaited for `patience` only: it may never answer, or the caller be the one who reads its answer.
  void AwaitUnwanted(std::chrono::milliseconds patience) EXCLUDES(mutex_);

  size_t size() const EXCLUDES(mutex_);

 private:
  struct Mapping {
    uint64_t size = 0;
    uint32_t flags = 0;
    HostMapping memory;      // not valid: ask the client
    bool may_fault = false;  // copy through the kernel
    bool closing = false;
    unsigned users = 0;
  };
  using Mappings = std::map<uint64_t, Mapping>;

  static bool Always() { return true; }
  // Either way of a copy; where `write`, `data` is only read from.
  uint32_t Copy(uint64_t address, std::span<std::byte> data, bool write, const Wanted& wanted)
      EXCLUDES(mutex_);
  // One chunk of it; `size` becomes what was copied.
  uint32_t CopyChunk(uint64_t address, std::span<std::byte> data, bool write, const Wanted& wanted,
                     uint64_t& size) EXCLUDES(mutex_);
  Mappings::iterator Find(uint64_t address, uint32_t needed) REQUIRES(mutex_);
  void Remove(Mappings::iterator mapping) REQUIRES(mutex_);

  mutable Mutex mutex_;
  CondVar unused_;
  Mappings mappings_ GUARDED_BY(mutex_);
  unsigned copies_ GUARDED_BY(mutex_) = 0;  // under way, in mapped memory
  unsigned asked_ GUARDED_BY(mutex_) = 0;   // and by asking
  std::shared_ptr<Asker> asker_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::vfio_user
