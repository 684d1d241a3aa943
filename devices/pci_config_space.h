// PciConfigSpace: one function's 4 KiB: the bytes, and what a guest may do to each bit.
//
// A plain value for PCI functions to hold under their own lock. Read and Write are the guest's
// view: bits are read-only unless made writable or write-1-to-clear. Get and Set are the owner's
// view. Register names and layouts come from <linux/pci_regs.h> (PCIe 6.0, 7.5). Offsets and sizes
// are the owner's business: out of bounds is a CHECK. The contents may be hostile.
#pragma once

#include <array>
#include <bitset>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "base/check.h"

namespace crossbar {

template <typename T>
concept ConfigRegister =
    std::same_as<T, uint8_t> || std::same_as<T, uint16_t> || std::same_as<T, uint32_t>;

class PciConfigSpace {
 public:
  static constexpr uint16_t kSize = 4096;
  static constexpr uint16_t kFirstCapability = 0x40;
  static constexpr uint16_t kFirstExtendedCapability = 0x100;

  struct Capability {
    uint8_t id = 0;
    uint8_t offset = 0;
    bool operator==(const Capability&) const = default;
  };
  struct ExtendedCapability {
    uint16_t id = 0;
    uint8_t version = 0;
    uint16_t offset = 0;
    bool operator==(const ExtendedCapability&) const = default;
  };

  // The guest's view; `size` is 1, 2 or 4.
  uint32_t Read(uint16_t offset, unsigned size) const;
  void Write(uint16_t offset, unsigned size, uint32_t value);

  // The owner's view.
  template <ConfigRegister T>
  T Get(uint16_t offset) const {
    return Load<T>(bytes_, offset);
  }
  template <ConfigRegister T>
  void Set(uint16_t offset, T value) {
    Store<T>(bytes_, offset, value);
  }

  // Which bits the guest may change, and which it clears by writing 1; the latter wins.
  template <ConfigRegister T>
  void SetWritable(uint16_t offset, T mask) {
    Store<T>(writable_, offset, mask);
  }
  template <ConfigRegister T>
  void SetWriteOneToClear(uint16_t offset, T mask) {
    Store<T>(write_one_to_clear_, offset, mask);
  }

  // The lists as a guest walks them, up to the first entry that is out of place or was met before,
  // so that a list of any contents ends. Null capabilities are left out.
  std::vector<Capability> Capabilities() const;
  std::vector<ExtendedCapability> ExtendedCapabilities() const;
  std::optional<uint8_t> FindCapability(uint8_t id) const;
  std::optional<uint16_t> FindExtendedCapability(uint16_t id) const;

  // Puts a capability of `size` bytes, header included, at the end of its list and says where.
  // Takes room that is all zero and not handed out before; nothing where there is no such room.
  std::optional<uint8_t> AddCapability(uint8_t id, uint16_t size);
  std::optional<uint16_t> AddExtendedCapability(uint16_t id, uint8_t version, uint16_t size);

 private:
  using Bytes = std::array<uint8_t, kSize>;

  template <typename T>
  static T Load(const Bytes& bytes, uint16_t offset) {
    CHECK(offset + sizeof(T) <= kSize, "offset {:#x}", offset);
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
  }
  template <typename T>
  static void Store(Bytes& bytes, uint16_t offset, T value) {
    CHECK(offset + sizeof(T) <= kSize, "offset {:#x}", offset);
    std::memcpy(bytes.data() + offset, &value, sizeof(T));
  }

  // The offsets of all list entries, null ones included.
  std::vector<uint8_t> WalkCapabilities() const;
  std::vector<uint16_t> WalkExtendedCapabilities() const;
  // Takes `size` bytes of free room in [begin, end), in whole dwords.
  std::optional<uint16_t> Allocate(uint16_t begin, uint16_t end, uint16_t size);

  Bytes bytes_ = {};
  Bytes writable_ = {};
  Bytes write_one_to_clear_ = {};
  std::bitset<kSize / 4> allocated_;  // dwords
};

}  // namespace crossbar
