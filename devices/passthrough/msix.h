// Msix: the MSI-X table and pending bits of a passed-through device, kept here and not in the device:
// the guest's messages are GSIs of KVM, the host's are in the hardware.
//
// Owned by a PassthroughFunction. vCPU threads access the table at once; control comes one at a time.
// Register layouts: PCIe 6.0, 7.7.2.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/locks.h"
#include "devices/passthrough/message_vectors.h"

namespace crossbar {

class Msix {
 public:
  // As its capability says: which BARs and where in them, in bytes.
  struct Layout {
    unsigned table_bar = 0;
    uint64_t table_offset = 0;
    unsigned pba_bar = 0;
    uint64_t pba_offset = 0;
    uint32_t vectors = 0;  // 1 to 2048

    static constexpr uint64_t kEntrySize = 16;
    uint64_t table_size() const { return vectors * kEntrySize; }
    uint64_t pba_size() const { return (uint64_t{vectors} + 63) / 64 * 8; }
  };

  Msix(VfioBackend& backend, InterruptRouter& router, Layout layout);

  const Layout& layout() const { return layout_; }

  // Whether an access touches the table or the pending bits, which are answered here, wherever in the
  // access they lie; the rest of it reads as 0.
  bool Holds(unsigned bar, uint64_t offset, unsigned size) const;
  uint64_t Read(unsigned bar, uint64_t offset, unsigned size) EXCLUDES(mutex_);
  void Write(unsigned bar, uint64_t offset, unsigned size, uint64_t value) EXCLUDES(mutex_);

  // `areas` of `bar` without the pages that the table or the pending bits touch: what may be mapped.
  std::vector<VfioBackend::Area> Carve(unsigned bar, std::vector<VfioBackend::Area> areas) const;

  // The two bits of Message Control.
  void SetControl(bool enabled, bool masked) EXCLUDES(mutex_);
  // Off, and the table as after a reset.
  void Reset() EXCLUDES(mutex_);

 private:
  void Apply(uint32_t first, uint32_t count) REQUIRES(mutex_);
  std::optional<InterruptRouter::Message> Wanted(uint32_t vector) const REQUIRES(mutex_);
  uint8_t ReadByte(unsigned bar, uint64_t offset) const REQUIRES(mutex_);

  const Layout layout_;
  Mutex mutex_;
  std::vector<uint8_t> table_ GUARDED_BY(mutex_);
  MessageVectors vectors_ GUARDED_BY(mutex_);
  bool masked_ GUARDED_BY(mutex_) = false;
};

}  // namespace crossbar
