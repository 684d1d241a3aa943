// VfioInfo: the answer to a VFIO *_GET_INFO ioctl, with its capability chain (linux/vfio.h,
// vfio_info_cap_header), as long as the kernel wants it. Values; any thread.
#pragma once

#include <linux/vfio.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/sys.h"

namespace crossbar {

template <typename Fixed>
class VfioInfo {
 public:
  // `request` takes a Fixed whose argsz the kernel raises where it has more to say. `index` goes into
  // the field of that name, where there is one.
  static Result<VfioInfo> Get(int fd, sys::Request request, uint32_t index = 0) {
    VfioInfo info;
    while (true) {
      Fixed fixed{};
      fixed.argsz = static_cast<uint32_t>(info.bytes_.size());
      if constexpr (requires { fixed.index; }) fixed.index = index;
      std::memcpy(info.bytes_.data(), &fixed, sizeof fixed);
      TRY(sys::Ioctl(fd, request, info.bytes_.data()));
      const size_t wanted = info.fixed().argsz;
      if (wanted <= info.bytes_.size()) return info;
      info.bytes_.assign(wanted, std::byte{0});
    }
  }

  Fixed fixed() const {
    Fixed fixed;
    std::memcpy(&fixed, bytes_.data(), sizeof fixed);
    return fixed;
  }

  // From the header of the capability `id` to the end of the answer; empty where there is none. The
  // chain starts at `first`.
  std::span<const std::byte> Capability(uint32_t first, uint16_t id) const {
    // Offsets only grow, or it would be no chain that ends.
    for (uint32_t at = first; at >= sizeof(Fixed);) {
      vfio_info_cap_header header;
      if (at + sizeof header > bytes_.size()) break;
      std::memcpy(&header, bytes_.data() + at, sizeof header);
      if (header.id == id) return std::span(bytes_).subspan(at);
      if (header.next <= at) break;
      at = header.next;
    }
    return {};
  }

 private:
  std::vector<std::byte> bytes_ = std::vector<std::byte>(sizeof(Fixed));
};

// The array of T that begins `start` bytes into a capability; its 32-bit length is at `count`. Only what
// the capability holds.
template <typename T>
std::vector<T> ElementsOf(std::span<const std::byte> capability, size_t count, size_t start) {
  uint32_t wanted = 0;
  if (capability.size() < start || capability.size() < count + sizeof wanted) return {};
  std::memcpy(&wanted, capability.data() + count, sizeof wanted);
  const size_t held = (capability.size() - start) / sizeof(T);
  std::vector<T> elements(wanted < held ? wanted : held);
  if (!elements.empty())
    std::memcpy(elements.data(), capability.data() + start, elements.size() * sizeof(T));
  return elements;
}

}  // namespace crossbar
