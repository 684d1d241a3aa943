// MemslotTable: what KVM knows of one VM's guest-physical space: memslots and ioeventfds.
// AddressSpace is its only user; fakes implement it in tests.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "memory/address.h"

namespace crossbar {

struct Memslot {
  uint32_t number = 0;
  GuestRange range;
  Hva host;
  bool read_only = false;
};

// A guest write that signals an eventfd instead of leaving KVM (KVM API, KVM_IOEVENTFD).
struct IoEvent {
  Gpa address;
  uint32_t size = 0;                  // of the write: 1, 2, 4 or 8; 0 means any
  std::optional<uint64_t> datamatch;  // only writes of this value
  int eventfd = -1;                   // borrowed
};

// Called one at a time, under AddressSpace's lock; Slots by any thread.
class MemslotTable {
 public:
  virtual ~MemslotTable() = default;

  // Installs a slot and returns its number. Both ends are page-aligned. An error leaves no slot:
  // EEXIST an overlap, ENOSPC no number free, else what KVM said.
  virtual Result<uint32_t> Add(GuestRange range, Hva host, bool read_only) = 0;

  // Takes a slot away. When it returns success no vCPU can reach the memory through it any more:
  // KVM waits for every vCPU that is inside (kvm_main.c, kvm_swap_active_memslots).
  virtual Result<> Remove(uint32_t number) = 0;

  virtual Result<> AddIoEvent(const IoEvent& event) = 0;
  virtual Result<> RemoveIoEvent(const IoEvent& event) = 0;

  // What is installed, by number; for diagnostics.
  virtual std::vector<Memslot> Slots() const = 0;
};

}  // namespace crossbar
