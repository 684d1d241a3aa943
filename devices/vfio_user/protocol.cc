#include "devices/vfio_user/protocol.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/sys_socket.h"
#include "base/thread.h"
#include "devices/vfio_user/memory_file.h"
#include "memory/address.h"

namespace crossbar::vfio_user {
namespace {

using Json = nlohmann::json;

// Larger than any BAR, and far from where offsets wrap around.
constexpr uint64_t kMaxRegion = 1ull << 46;
constexpr uint64_t kMaxVersionText = 16 * kKiB;
constexpr unsigned kMaxCapabilities = 16;
constexpr uint32_t kMaxIoFds = 256;

std::atomic<unsigned> hanging_closes = 0;

constexpr uint32_t kIoEventFd = 0;
constexpr uint32_t kDataMatch = 1;  // KVM_IOEVENTFD_FLAG_DATAMATCH

// A whole number of `object`, if it is there.
Result<> Number(const Json& object, const char* name, uint64_t least, uint64_t most,
                uint64_t& value) {
  const auto found = object.find(name);
  if (found == object.end()) return {};
  if (!found->is_number_unsigned()) return Fail("capability {} is no number", name);
  const auto number = found->get<uint64_t>();
  if (number < least || number > most) return Fail("capability {} is {}", name, number);
  value = number;
  return {};
}

Result<> ParseTwinSocket(const Json& capabilities, Version& version) {
  const auto twin = capabilities.find("twin_socket");
  if (twin == capabilities.end()) return {};
  if (!twin->is_object()) return Fail("capability twin_socket is no object");
  if (const auto supported = twin->find("supported"); supported != twin->end()) {
    if (!supported->is_boolean()) return Fail("capability twin_socket.supported is no boolean");
    version.twin_socket = supported->get<bool>();
  }
  if (!twin->contains("fd_index")) return {};
  uint64_t index = 0;
  TRY(Number(*twin, "fd_index", 0, 1024, index));
  version.twin_fd_index = index;
  return {};
}

Result<> ParseCapabilities(std::string_view text, Version& version) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return Fail("version data is no JSON object");
  const auto found = json.find("capabilities");
  if (found == json.end()) return {};
  if (!found->is_object()) return Fail("capabilities are no object");
  uint64_t max_msg_fds = version.max_msg_fds;
  TRY(Number(*found, "max_msg_fds", 0, 1024, max_msg_fds));
  version.max_msg_fds = static_cast<uint32_t>(max_msg_fds);
  TRY(Number(*found, "max_data_xfer_size", 8, std::numeric_limits<uint64_t>::max(),
             version.max_data_xfer_size));
  if (found->contains("max_dma_maps")) {
    TRY(Number(*found, "max_dma_maps", 1, std::numeric_limits<uint64_t>::max(),
               version.max_dma_maps.emplace()));
  }
  TRY(Number(*found, "pgsizes", 1, std::numeric_limits<uint64_t>::max(), version.page_sizes));
  return ParseTwinSocket(*found, version);
}

// Appends the areas of one sparse capability.
Result<> ParseSparse(std::span<const std::byte> payload, uint64_t at, RegionReply& reply) {
  const auto sparse = Decode<SparseMmap>(payload, at);
  if (!sparse) return Fail("a capability leaves the message");
  for (uint32_t i = 0; i < sparse->areas; ++i) {
    // Bounded by the payload: the first area that is not all there is an error.
    const auto area =
        Decode<SparseArea>(payload, at + sizeof(SparseMmap) + uint64_t{i} * sizeof(SparseArea));
    if (!area) return Fail("{} areas leave the message", sparse->areas);
    if (area->size == 0) continue;
    if (area->offset > reply.info.size || area->size > reply.info.size - area->offset)
      return Fail("area {:#x}+{:#x} is outside the region", area->offset, area->size);
    if (!IsAligned(area->offset, kPageSize) || !IsAligned(area->size, kPageSize)) {
      reply.dropped = true;
      continue;
    }
    reply.areas.push_back({area->offset, area->size});
  }
  return {};
}

// Whether there was a sparse capability: without one all of the region can be mapped.
Result<bool> ParseRegionCapabilities(std::span<const std::byte> payload, RegionReply& reply) {
  bool sparse = false;
  uint64_t at = (reply.info.flags & RegionInfo::kCaps) != 0 ? reply.info.cap_offset : 0;
  for (unsigned i = 0; at != 0; ++i) {
    if (i == kMaxCapabilities) return Fail("the list of capabilities does not end");
    if (at < sizeof(RegionInfo)) return Fail("a capability lies at {:#x}", at);
    const auto header = Decode<CapabilityHeader>(payload, at);
    if (!header) return Fail("a capability leaves the message");
    if (header->id == CapabilityHeader::kSparseMmap) {
      sparse = true;
      TRY(ParseSparse(payload, at, reply));
    }
    at = header->next;
  }
  return sparse;
}

}  // namespace

bool MayHang(const Fd& fd) {
  return fd.valid() && !IsMemoryFile(fd.get()) && !sys::IsEventFd(fd.get());
}

unsigned HangingCloses() { return hanging_closes; }

void Discard(std::vector<Fd> fds) {
  std::erase_if(fds, [](const Fd& fd) { return !MayHang(fd); });
  if (fds.empty()) return;
  const auto hanging = std::make_shared<std::vector<Fd>>(std::move(fds));
  ++hanging_closes;
  Result<std::thread> closer = StartThread("closer", [hanging] {
    hanging->clear();
    --hanging_closes;
  });
  if (closer) return closer->detach();
  for (Fd& fd : *hanging) (void)fd.Release();
}

std::string CommandName(uint16_t command) {
  static constexpr const char* kNames[] = {
      nullptr,   "VERSION",  "DMA_MAP",     "DMA_UNMAP",    "GET_INFO", "GET_REGION_INFO",
      "GET_REGION_IO_FDS", "GET_IRQ_INFO", "SET_IRQS", "REGION_READ", "REGION_WRITE",
      "DMA_READ", "DMA_WRITE", "DEVICE_RESET"};
  if (command == 0 || command >= std::size(kNames)) return fmt::format("command {}", command);
  return kNames[command];
}

std::vector<std::byte> EncodeVersion(const Version& version) {
  // What is as the protocol has it by default stays unsaid: a reply may name nothing that the request
  // did not, and should not be longer.
  Json capabilities = {{"max_msg_fds", version.max_msg_fds},
                       {"max_data_xfer_size", version.max_data_xfer_size}};
  if (version.max_dma_maps) capabilities["max_dma_maps"] = *version.max_dma_maps;
  if (version.twin_socket) {
    capabilities["twin_socket"]["supported"] = true;
    if (version.twin_fd_index)
      capabilities["twin_socket"]["fd_index"] = *version.twin_fd_index;
  }
  const std::string text = Json{{"capabilities", capabilities}}.dump();
  std::vector<std::byte> payload(4 + text.size() + 1);
  std::memcpy(payload.data(), &version.major, 2);
  std::memcpy(payload.data() + 2, &version.minor, 2);
  std::memcpy(payload.data() + 4, text.c_str(), text.size() + 1);
  return payload;
}

Result<Version> ParseVersion(std::span<const std::byte> payload) {
  const auto numbers = Decode<std::array<uint16_t, 2>>(payload);
  if (!numbers) return Fail("a version of {} bytes", payload.size());
  Version version;
  version.major = (*numbers)[0];
  version.minor = (*numbers)[1];
  payload = payload.subspan(sizeof *numbers);
  if (payload.empty()) return version;
  if (payload.size() > kMaxVersionText) return Fail("{} bytes of version data", payload.size());
  const std::string_view text(reinterpret_cast<const char*>(payload.data()), payload.size());
  const size_t end = text.find('\0');
  if (end == std::string_view::npos) return Fail("version data without an end");
  TRY(ParseCapabilities(text.substr(0, end), version));
  return version;
}

Result<RegionReply> ParseRegionReply(std::span<const std::byte> payload, uint32_t index) {
  const auto info = Decode<RegionInfo>(payload);
  if (!info) return Fail("{} bytes of region info", payload.size());
  if (info->index != index) return Fail("info on region {} for {}", info->index, index);
  if (info->size > kMaxRegion) return Fail("region {} has {:#x} bytes", index, info->size);
  if (info->offset > std::numeric_limits<int64_t>::max() - kMaxRegion)
    return Fail("region {} lies at {:#x}", index, info->offset);
  RegionReply reply{*info, {}, false};
  if (!TRY(ParseRegionCapabilities(payload, reply)) && (info->flags & RegionInfo::kMmap) != 0) {
    const uint64_t whole = AlignDown(info->size, kPageSize);
    if (whole != 0) reply.areas.push_back({0, whole});
    reply.dropped = whole != info->size;
  }
  if ((info->flags & RegionInfo::kMmap) == 0) reply.areas.clear();
  std::ranges::sort(reply.areas, {}, &VfioBackend::Area::offset);
  for (size_t i = 1; i < reply.areas.size(); ++i) {
    if (reply.areas[i].offset - reply.areas[i - 1].offset < reply.areas[i - 1].size)
      return Fail("areas of region {} overlap", index);
  }
  return reply;
}

Result<std::vector<IoFd>> ParseIoFds(std::span<const std::byte> payload, uint32_t index,
                                     uint64_t region_size, size_t fds) {
  const auto header = Decode<RegionIoFds>(payload);
  if (!header) return Fail("{} bytes of region descriptors", payload.size());
  std::vector<IoFd> list;
  if (header->count == 0) return list;
  if (header->index != index || header->count > kMaxIoFds || header->argsz < sizeof(RegionIoFds))
    return Fail("{} descriptors of region {}", header->count, header->index);
  // The protocol's entries have 40 bytes, with the value to match at 32; libvfio-user's have 48, with
  // the value at 40 and something of its own before it.
  const uint64_t stride = (header->argsz - sizeof(RegionIoFds)) / header->count;
  if (stride < 40) return Fail("region descriptors of {} bytes", stride);
  for (uint64_t i = 0; i < header->count; ++i) {
    const uint64_t at = sizeof(RegionIoFds) + i * stride;
    struct Entry {
      uint64_t offset;
      uint64_t size;
      uint32_t fd;
      uint32_t type;
      uint32_t flags;
      uint32_t padding;
    };
    const auto entry = Decode<Entry>(payload, at);
    const auto value = Decode<uint64_t>(payload, at + (stride >= 48 ? 40 : 32));
    if (!entry || !value) return Fail("region descriptors leave the message");
    if (entry->type != kIoEventFd || (entry->flags & ~kDataMatch) != 0) continue;
    if (entry->fd >= fds) return Fail("descriptor {} of {}", entry->fd, fds);
    const bool whole = entry->size == 0 || entry->size == 1 || entry->size == 2 ||
                       entry->size == 4 || entry->size == 8;
    if (!whole || entry->offset >= region_size ||
        std::max<uint64_t>(entry->size, 1) > region_size - entry->offset)
      return Fail("an eventfd for {:#x}+{:#x}", entry->offset, entry->size);
    IoFd& one = list.emplace_back();
    one.offset = entry->offset;
    one.size = static_cast<uint32_t>(entry->size);
    one.fd = entry->fd;
    // KVM matches no value where any size does.
    if ((entry->flags & kDataMatch) != 0 && entry->size != 0) one.datamatch = value;
  }
  return list;
}

}  // namespace crossbar::vfio_user
