#include "devices/pci_firmware.h"

#include <linux/pci_regs.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"

namespace crossbar {
namespace {

// The least a bridge's windows can be, and what they are a multiple of (7.5.1.3.6, 7.5.1.3.8).
constexpr uint64_t kPortsGrain = 4 * kKiB;
constexpr uint64_t kMemoryGrain = kMiB;

// A BAR, or a bridge's window with the requests that go into it.
struct Request {
  enum class Kind : uint8_t { kPorts, kMemory32, kMemory64, kRom };
  PciAddress address;
  uint16_t offset = 0;  // of its first register
  uint64_t size = 0;
  uint64_t alignment = 0;
  Kind kind = Kind::kMemory32;
  bool prefetchable = false;
  std::vector<Request> behind;  // empty: a BAR
};

// Hands out a window from below.
class Allocator {
 public:
  explicit Allocator(GuestRange window) : window_(window), next_(window.start.value()) {}
  // A place for `size` bytes, aligned to `alignment`, a power of two.
  std::optional<uint64_t> Take(uint64_t size, uint64_t alignment) {
    const uint64_t start = AlignUp(next_, alignment);
    if (start < next_ || !window_.Contains(GuestRange{Gpa(start), size})) return std::nullopt;
    next_ = start + size;
    return start;
  }

 private:
  const GuestRange window_;
  uint64_t next_;
};

// Largest first, and else in the order of the bus.
void Sort(std::vector<Request>& requests) {
  std::ranges::sort(requests, [](const Request& a, const Request& b) {
    return std::tie(b.alignment, a.address, a.offset) < std::tie(a.alignment, b.address, b.offset);
  });
}

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
  Request request;
  request.address = address;
  request.offset = offset;
  if ((mask & PCI_BASE_ADDRESS_SPACE_IO) != 0) {
    request.kind = Request::Kind::kPorts;
    // The upper half may be wired to 0 (7.5.1.2.1).
    request.size = request.alignment = ~(uint64_t{mask & 0xfffcu} | ~0xffffull) + 1;
    return request;
  }
  uint64_t bits = mask & ~0xfu;
  bits |= 0xffffffff00000000;
  request.prefetchable = (mask & PCI_BASE_ADDRESS_MEM_PREFETCH) != 0;
  if ((mask & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64) {
    request.kind = Request::Kind::kMemory64;
    const uint32_t upper = Probe(root, address, static_cast<uint16_t>(offset + 4));
    bits = (mask & ~0xfu) | uint64_t{upper} << 32;
  }
  request.size = request.alignment = ~bits + 1;
  if (request.size == 0) return std::nullopt;
  return request;
}

void WriteWindow(PciRoot& root, const Request& window, uint64_t first, uint64_t last) {
  const auto put = [&](unsigned offset, unsigned size, uint64_t value) {
    root.Write(window.address, static_cast<uint16_t>(offset), size, static_cast<uint32_t>(value));
  };
  if (window.offset == PCI_IO_BASE) {
    put(PCI_IO_BASE, 1, first >> 8 & 0xf0);
    put(PCI_IO_LIMIT, 1, last >> 8 & 0xf0);
    return;
  }
  put(window.offset, 2, first >> 16 & 0xfff0);
  put(window.offset + 2u, 2, last >> 16 & 0xfff0);
  if (window.offset != PCI_PREF_MEMORY_BASE) return;
  put(PCI_PREF_BASE_UPPER32, 4, first >> 32);
  put(PCI_PREF_LIMIT_UPPER32, 4, last >> 32);
}

// Which window of a bridge it goes into: only the prefetchable one may be above 4 GiB (7.5.1.3.9), where
// only 64-bit BARs can be.
uint16_t WindowOf(const Request& request) {
  if (request.kind == Request::Kind::kPorts) return PCI_IO_BASE;
  const bool high = request.kind == Request::Kind::kMemory64 && request.prefetchable;
  return high ? PCI_PREF_MEMORY_BASE : PCI_MEMORY_BASE;
}

// The size of a window is that of what is in it, packed as it will be.
void Pack(Request& window) {
  const uint64_t grain = window.offset == PCI_IO_BASE ? kPortsGrain : kMemoryGrain;
  Sort(window.behind);
  uint64_t end = 0;
  for (const Request& request : window.behind) end = AlignUp(end, request.alignment) + request.size;
  window.size = AlignUp(end, grain);
  window.alignment = std::max(grain, window.behind.front().alignment);
}

class Scan {
 public:
  Scan(PciRoot& root, const PciWindows& windows)
      : root_(root), windows_(windows), last_bus_(root.first_bus()) {}

  // All that is on `bus`, and behind it. `turn` is how far round INTA of device 0 is on the root bus.
  std::vector<Request> Bus(uint8_t bus, unsigned turn) {
    std::vector<Request> requests;
    for (uint8_t device = 0; device < 32; ++device) {
      for (uint8_t function = 0; function < 8; ++function) {
        const PciAddress address{bus, {device, function}};
        if (root_.Read(address, PCI_VENDOR_ID, 2) == 0xffff) continue;
        const uint32_t type = root_.Read(address, PCI_HEADER_TYPE, 1) & 0x7f;
        if (type == PCI_HEADER_TYPE_NORMAL) Function(address, turn, requests);
        if (type == PCI_HEADER_TYPE_BRIDGE) Bridge(address, turn, requests);
      }
    }
    return requests;
  }

 private:
  void Function(PciAddress address, unsigned turn, std::vector<Request>& requests) {
    for (uint16_t offset = PCI_BASE_ADDRESS_0; offset <= PCI_BASE_ADDRESS_5; offset += 4) {
      const std::optional<Request> request = Size(root_, address, offset);
      if (!request) continue;
      requests.push_back(*request);
      if (request->kind == Request::Kind::kMemory64) offset += 4;
    }
    const uint32_t rom = Probe(root_, address, PCI_ROM_ADDRESS) & PCI_ROM_ADDRESS_MASK;
    if (rom != 0)
      requests.push_back({address, PCI_ROM_ADDRESS, ~rom + 1u, ~rom + 1u, Request::Kind::kRom, false, {}});
    const uint32_t pin = root_.Read(address, PCI_INTERRUPT_PIN, 1);
    if (pin >= 1 && pin <= 4)
      root_.Write(address, PCI_INTERRUPT_LINE, 1,
                  windows_.intx_gsi[(turn + address.devfn.device + pin - 1) % 4]);
  }

  // Numbers its bus and opens it, with all windows closed until they are placed.
  void Bridge(PciAddress address, unsigned turn, std::vector<Request>& requests) {
    if (last_bus_ == root_.last_bus()) return;
    const uint8_t bus = ++last_bus_;
    root_.Write(address, PCI_PRIMARY_BUS, 1, address.bus);
    root_.Write(address, PCI_SECONDARY_BUS, 1, bus);
    root_.Write(address, PCI_SUBORDINATE_BUS, 1, root_.last_bus());
    std::vector<Request> behind = Bus(bus, turn + address.devfn.device);
    root_.Write(address, PCI_SUBORDINATE_BUS, 1, last_bus_);
    for (const auto& [offset, kind] : {std::pair<uint16_t, Request::Kind>{PCI_IO_BASE, Request::Kind::kPorts},
                                       {PCI_MEMORY_BASE, Request::Kind::kMemory32},
                                       {PCI_PREF_MEMORY_BASE, Request::Kind::kMemory64}}) {
      Request window{address, offset, 0, 0, kind, kind == Request::Kind::kMemory64, {}};
      WriteWindow(root_, window, ~0ull, 0);
      for (Request& request : behind)
        if (WindowOf(request) == offset) window.behind.push_back(std::move(request));
      if (window.behind.empty()) continue;
      Pack(window);
      requests.push_back(std::move(window));
    }
    root_.Write(address, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  }

  PciRoot& root_;
  const PciWindows& windows_;
  uint8_t last_bus_;
};

void Place(PciRoot& root, const Request& request, uint64_t start) {
  if (request.behind.empty()) {
    root.Write(request.address, request.offset, 4, static_cast<uint32_t>(start));
    if (request.kind == Request::Kind::kMemory64)
      root.Write(request.address, static_cast<uint16_t>(request.offset + 4), 4,
                 static_cast<uint32_t>(start >> 32));
    return;
  }
  WriteWindow(root, request, start, start + request.size - 1);
  Allocator window({Gpa(start), request.size});
  for (const Request& inner : request.behind) {
    const std::optional<uint64_t> place = window.Take(inner.size, inner.alignment);
    CHECK(place.has_value(), "a window of {:#x} for what it was made for", request.size);
    Place(root, inner, *place);
  }
}

}  // namespace

Result<> AssignPciResources(PciRoot& root, const PciWindows& windows) {
  std::vector<Request> requests = Scan(root, windows).Bus(root.first_bus(), 0);
  Sort(requests);
  Allocator memory32(windows.memory32);
  Allocator memory64(windows.memory64);
  Allocator ports(windows.ports);
  for (const Request& request : requests) {
    std::optional<uint64_t> place;
    const auto take = [&](Allocator& window) { place = window.Take(request.size, request.alignment); };
    if (request.kind == Request::Kind::kPorts) take(ports);
    if (request.kind == Request::Kind::kMemory64) take(memory64);
    if (!place && request.kind != Request::Kind::kPorts) take(memory32);
    if (!place)
      return Fail("{} guest device {} needs {:#x} bytes, and no PCI window has so much left",
                  request.behind.empty() ? fmt::format("the BAR at {:#x} of", request.offset)
                                         : "what is behind", request.address, request.size);
    Place(root, request, *place);
  }
  return {};
}

}  // namespace crossbar
