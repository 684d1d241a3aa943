#include "devices/pci_firmware.h"

#include <linux/pci_regs.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

namespace crossbar {
namespace {

struct Request {
  PciAddress address;
  uint16_t offset = 0;
  uint64_t size = 0;
  enum class Kind : uint8_t { kPorts, kMemory32, kMemory64, kRom } kind = Kind::kMemory32;
};

// Hands out a window from below.
class Allocator {
 public:
  explicit Allocator(GuestRange window) : window_(window), next_(window.start.value()) {}
  // A place for `size` bytes, a power of two, aligned to it.
  std::optional<uint64_t> Take(uint64_t size) {
    const uint64_t start = AlignUp(next_, size);
    if (start < next_ || !window_.Contains(GuestRange{Gpa(start), size})) return std::nullopt;
    next_ = start + size;
    return start;
  }

 private:
  const GuestRange window_;
  uint64_t next_;
};

// The register's bits that can be written, found as every guest does.
uint32_t Probe(PciRoot& root, PciAddress address, uint16_t offset) {
  const uint32_t before = root.Read(address, offset, 4);
  root.Write(address, offset, 4, ~0u);
  const uint32_t mask = root.Read(address, offset, 4);
  root.Write(address, offset, 4, before);
  return mask;
}

// A request for the BAR at `offset`, if one is there.
std::optional<Request> Size(PciRoot& root, PciAddress address, uint16_t offset) {
  const uint32_t mask = Probe(root, address, offset);
  if (mask == 0) return std::nullopt;
  Request request{address, offset, 0, Request::Kind::kMemory32};
  if ((mask & PCI_BASE_ADDRESS_SPACE_IO) != 0) {
    request.kind = Request::Kind::kPorts;
    // The upper half may be wired to 0 (7.5.1.2.1).
    request.size = ~(uint64_t{mask & 0xfffcu} | ~0xffffull) + 1;
    return request;
  }
  uint64_t bits = mask & ~0xfu;
  bits |= 0xffffffff00000000;
  if ((mask & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64) {
    request.kind = Request::Kind::kMemory64;
    const uint32_t upper = Probe(root, address, static_cast<uint16_t>(offset + 4));
    bits = (mask & ~0xfu) | uint64_t{upper} << 32;
  }
  request.size = ~bits + 1;
  if (request.size == 0) return std::nullopt;
  return request;
}

void CollectFunction(PciRoot& root, PciAddress address, std::vector<Request>& requests) {
  for (uint16_t offset = PCI_BASE_ADDRESS_0; offset <= PCI_BASE_ADDRESS_5; offset += 4) {
    const std::optional<Request> request = Size(root, address, offset);
    if (!request) continue;
    requests.push_back(*request);
    if (request->kind == Request::Kind::kMemory64) offset += 4;
  }
  const uint32_t rom = Probe(root, address, PCI_ROM_ADDRESS) & PCI_ROM_ADDRESS_MASK;
  if (rom != 0) requests.push_back({address, PCI_ROM_ADDRESS, ~rom + 1u, Request::Kind::kRom});
}

}  // namespace

Result<> AssignPciResources(PciRoot& root, const PciWindows& windows) {
  std::vector<Request> requests;
  for (uint8_t device = 0; device < 32; ++device) {
    for (uint8_t function = 0; function < 8; ++function) {
      const PciAddress address{root.first_bus(), {device, function}};
      if (root.Read(address, PCI_VENDOR_ID, 2) == 0xffff) continue;
      if ((root.Read(address, PCI_HEADER_TYPE, 1) & 0x7f) != PCI_HEADER_TYPE_NORMAL) continue;
      CollectFunction(root, address, requests);
      const uint32_t pin = root.Read(address, PCI_INTERRUPT_PIN, 1);
      if (pin >= 1 && pin <= 4)
        root.Write(address, PCI_INTERRUPT_LINE, 1, windows.intx_gsi[(device + pin - 1) % 4]);
    }
  }
  // Largest first, and else in the order of the bus.
  std::ranges::sort(requests, [](const Request& a, const Request& b) {
    return std::tie(b.size, a.address, a.offset) < std::tie(a.size, b.address, b.offset);
  });
  Allocator memory32(windows.memory32);
  Allocator memory64(windows.memory64);
  Allocator ports(windows.ports);
  for (const Request& request : requests) {
    std::optional<uint64_t> place;
    if (request.kind == Request::Kind::kPorts) place = ports.Take(request.size);
    if (request.kind == Request::Kind::kMemory64) place = memory64.Take(request.size);
    if (!place && request.kind != Request::Kind::kPorts) place = memory32.Take(request.size);
    if (!place)
      return Fail("the BAR at {:#x} of guest device {} needs {:#x} bytes, and no PCI window has so "
                  "much left", request.offset, request.address, request.size);
    root.Write(request.address, request.offset, 4, static_cast<uint32_t>(*place));
    if (request.kind == Request::Kind::kMemory64)
      root.Write(request.address, static_cast<uint16_t>(request.offset + 4), 4,
                 static_cast<uint32_t>(*place >> 32));
  }
  return {};
}

}  // namespace crossbar
