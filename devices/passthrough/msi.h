// Msi: the MSI capability of a passed-through device: from what its registers hold to vectors.
//
// Owned by a PassthroughFunction, which keeps the registers (ConfigView) and calls Apply under its lock
// after each write to them. Register layouts: PCIe 6.0, 7.7.1.
#pragma once

#include <cstdint>
#include <span>

#include "devices/passthrough/message_vectors.h"

namespace crossbar {

class Msi {
 public:
  // Where things are in the capability, by its Message Control as the device has it.
  struct Layout {
    bool wide = false;      // 64-bit address
    bool maskable = false;  // per vector
    uint32_t vectors = 1;   // 1 to 32

    explicit Layout(uint16_t control);
    uint16_t data() const { return wide ? 12 : 8; }
    uint16_t mask() const { return wide ? 16 : 12; }     // if maskable
    uint16_t pending() const { return wide ? 20 : 16; }  // if maskable
    uint16_t size() const { return static_cast<uint16_t>(data() + (maskable ? 12 : 2)); }
  };
  static constexpr size_t kMaxSize = 24;

  Msi(VfioBackend& backend, InterruptRouter& router, Layout layout);

  const Layout& layout() const { return layout_; }
  bool enabled() const { return vectors_.enabled(); }

  // `registers` are the capability's bytes.
  void Apply(std::span<const uint8_t> registers);
  void Reset() { vectors_.Disable(); }
  // The Pending Bits register.
  uint32_t Pending() const;

 private:
  const Layout layout_;
  MessageVectors vectors_;
  uint32_t in_use_ = 0;  // vectors, while enabled
};

}  // namespace crossbar
