#include "devices/vfio_user/client_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "devices/vfio_user/memory_file.h"
#include "memory/guarded_copy.h"

namespace crossbar::vfio_user {
namespace {

// A copy holds its mapping for no more than this at a time: an unmap waits for it.
constexpr uint64_t kChunk = kMaxTransfer;

uint32_t ErrnoOf(const Error& error) {
  return error.code() > 0 ? static_cast<uint32_t>(error.code()) : EIO;
}

}  // namespace

void ClientMemory::SetAsker(std::shared_ptr<Asker> asker) {
  MutexLock lock(mutex_);
  asker_ = std::move(asker);
}

uint32_t ClientMemory::Map(const DmaMapRequest& request, int file) {
  constexpr uint32_t kFlags = DmaMapRequest::kRead | DmaMapRequest::kWrite;
  const auto range = GuestRange::Checked(request.address, request.size);
  if (!range || range->empty() || (request.flags & ~kFlags) != 0) return EINVAL;
  if (!IsAligned(request.address, kPageSize) || !IsAligned(request.size, kPageSize)) return EINVAL;
  {
    MutexLock lock(mutex_);
    if (mappings_.size() >= kMaxMappings) return ENOSPC;
    // They are disjoint and in order: the last that begins before the range's end, or none.
    const auto after = mappings_.upper_bound(request.address + request.size - 1);
    if (after != mappings_.begin()) {
      const auto& [start, mapping] = *std::prev(after);
      if (range->Overlaps({Gpa(start), mapping.size})) return EEXIST;
    }
  }
  Mapping mapping;
  mapping.size = request.size;
  mapping.flags = request.flags;
  if (file >= 0) {
    // Whoever copies from or to a file of another kind may never come back.
    if (!IsMemoryFile(file)) return ENODEV;
    if (!IsAligned(request.offset, kPageSize) || request.offset + request.size < request.offset)
      return EINVAL;
    const int protection = ((request.flags & DmaMapRequest::kRead) != 0 ? PROT_READ : 0) |
                           ((request.flags & DmaMapRequest::kWrite) != 0 ? PROT_WRITE : 0);
    Result<HostMapping> memory =
        HostMapping::Map(file, request.offset, request.size, protection);
    if (!memory) return ErrnoOf(memory.error());
    mapping.memory = *std::move(memory);
    mapping.may_fault = WhyItMayFault(file, request.offset + request.size).has_value();
  }
  MutexLock lock(mutex_);
  mappings_.emplace(request.address, std::move(mapping));
  return 0;
}

uint32_t ClientMemory::Unmap(const DmaUnmapRequest& request) {
  MutexLock lock(mutex_);
  if (request.flags == DmaUnmapRequest::kAll) {
    if (request.address != 0 || request.size != 0) return EINVAL;
    while (!mappings_.empty()) Remove(mappings_.begin());
    return 0;
  }
  if (request.flags != 0) return EINVAL;
  const auto found = mappings_.find(request.address);
  if (found == mappings_.end() || found->second.size != request.size) return ENOENT;
  Remove(found);
  return 0;
}

void ClientMemory::Clear() {
  MutexLock lock(mutex_);
  asker_.reset();
  while (!mappings_.empty()) Remove(mappings_.begin());
}

// Only the server's thread removes, so `mapping` stays there while this waits.
void ClientMemory::Remove(Mappings::iterator mapping) {
  mapping->second.closing = true;
  while (mapping->second.users != 0) unused_.Wait(mutex_);
  mappings_.erase(mapping);
}

size_t ClientMemory::size() const {
  MutexLock lock(mutex_);
  return mappings_.size();
}

uint32_t ClientMemory::Read(uint64_t address, std::span<std::byte> data, const Wanted& wanted) {
  return Copy(address, data, false, wanted);
}

uint32_t ClientMemory::Write(uint64_t address, std::span<const std::byte> data, const Wanted& wanted) {
  return Copy(address, {const_cast<std::byte*>(data.data()), data.size()}, true, wanted);
}

void ClientMemory::AwaitUnwanted(std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  MutexLock lock(mutex_);
  // What begins from here on sees that it is not wanted, and a chunk ends by itself.
  while (copies_ != 0) unused_.Wait(mutex_);
  while (asked_ != 0 && unused_.WaitUntil(mutex_, deadline)) {
  }
}

ClientMemory::Mappings::iterator ClientMemory::Find(uint64_t address, uint32_t needed) {
  auto after = mappings_.upper_bound(address);
  if (after == mappings_.begin()) return mappings_.end();
  const auto found = std::prev(after);
  const Mapping& mapping = found->second;
  if (address - found->first >= mapping.size || mapping.closing) return mappings_.end();
  return (mapping.flags & needed) != 0 ? found : mappings_.end();
}

uint32_t ClientMemory::Copy(uint64_t address, std::span<std::byte> data, bool write,
                            const Wanted& wanted) {
  while (!data.empty()) {
    uint64_t size = 0;
    if (const uint32_t error = CopyChunk(address, data, write, wanted, size); error != 0) return error;
    data = data.subspan(size);
    address += size;
  }
  return 0;
}

uint32_t ClientMemory::CopyChunk(uint64_t address, std::span<std::byte> data, bool write,
                                 const Wanted& wanted, uint64_t& size) {
  std::shared_ptr<Asker> asker;
  Mappings::iterator found;
  Hva host;
  {
    MutexLock lock(mutex_);
    if (!wanted()) return EINTR;
    found = Find(address, write ? DmaMapRequest::kWrite : DmaMapRequest::kRead);
    if (found == mappings_.end()) return EFAULT;
    const uint64_t inside = address - found->first;
    size = std::min({data.size(), kChunk, found->second.size - inside});
    if (found->second.memory.valid()) {
      host = found->second.memory.address() + inside;
      ++found->second.users;
      ++copies_;
    } else {
      // Not held meanwhile: nothing of it is here, and the client refuses what it has unmapped.
      asker = asker_;
      if (asker == nullptr) return EFAULT;
      ++asked_;
    }
  }
  data = data.first(size);
  if (asker) {
    const uint32_t error =
        write ? asker->Write(address, data, wanted) : asker->Read(address, data, wanted);
    MutexLock lock(mutex_);
    if (--asked_ == 0) unused_.NotifyAll();
    return error;
  }
  // `users` keeps the mapping, whose other members do not change.
  uint32_t error = 0;
  if (found->second.may_fault) {
    const Result<> copied = write ? GuardedWrite(host, data) : GuardedRead(host, data);
    if (!copied) error = EFAULT;
  } else if (write) {
    std::memcpy(host.pointer(), data.data(), size);
  } else {
    std::memcpy(data.data(), host.pointer(), size);
  }
  MutexLock lock(mutex_);
  --copies_;
  if (--found->second.users == 0) unused_.NotifyAll();
  return error;
}

}  // namespace crossbar::vfio_user
