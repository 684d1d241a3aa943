// The vfio-user protocol on the wire: structs, limits, and checked ways in and out of them.
//
// Values and pure functions; any thread. Host byte order (the peer is on this host). Everything that
// is decoded comes from the other side and may be hostile: a decoder says no or gives something
// that needs no further check. Source: docs/interop/vfio-user.rst of QEMU, protocol 0.1; what its two
// implementations do otherwise is said where it matters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "devices/passthrough/backend.h"

namespace crossbar::vfio_user {

enum class Command : uint16_t {
  kVersion = 1,
  kDmaMap = 2,
  kDmaUnmap = 3,
  kGetInfo = 4,
  kGetRegionInfo = 5,
  kGetRegionIoFds = 6,
  kGetIrqInfo = 7,
  kSetIrqs = 8,
  kRegionRead = 9,
  kRegionWrite = 10,
  kDmaRead = 11,   // server to client
  kDmaWrite = 12,  // server to client
  kReset = 13,
};
// For people: "DMA_UNMAP", "command 77".
std::string CommandName(uint16_t command);

struct Header {
  static constexpr uint32_t kTypeMask = 0xf;
  static constexpr uint32_t kReply = 1;  // type; 0 is a command
  static constexpr uint32_t kNoReply = 0x10;
  static constexpr uint32_t kError = 0x20;

  uint16_t id = 0;
  uint16_t command = 0;
  uint32_t size = 0;  // of the message, this header included
  uint32_t flags = 0;
  uint32_t error = 0;  // errno of a reply with kError; may be 0 even then

  uint32_t type() const { return flags & kTypeMask; }
};
static_assert(sizeof(Header) == 16);

// Whether closing `fd` may wait for the file's owner, who may be the sender (FUSE's FLUSH): it is neither
// memory nor an eventfd.
bool MayHang(const Fd& fd);
// Closes what the other side sent and nobody wants; what may hang in a thread that hangs alone.
void Discard(std::vector<Fd> fds);
// How many of these threads there are, and of those that the host did not give us: what was to be closed in
// them stays open.
unsigned HangingCloses();

// `fds` came with it; those that nobody took are discarded with it.
struct Message {
  Message() = default;
  Message(Message&&) = default;
  Message& operator=(Message&& other) noexcept {
    Discard(std::move(fds));
    header = other.header;
    body = std::move(other.body);
    fds = std::move(other.fds);
    return *this;
  }
  ~Message() { Discard(std::move(fds)); }

  Header header;
  std::vector<std::byte> body;
  std::vector<Fd> fds;
};

struct DmaMapRequest {
  static constexpr uint32_t kRead = 1;
  static constexpr uint32_t kWrite = 2;
  uint32_t argsz = sizeof(DmaMapRequest);
  uint32_t flags = 0;
  uint64_t offset = 0;
  uint64_t address = 0;
  uint64_t size = 0;
};
struct DmaUnmapRequest {
  static constexpr uint32_t kAll = 2;  // libvfio-user's; address and size are 0
  uint32_t argsz = sizeof(DmaUnmapRequest);
  uint32_t flags = 0;
  uint64_t address = 0;
  uint64_t size = 0;
};
struct DeviceInfo {
  static constexpr uint32_t kReset = 1;
  static constexpr uint32_t kPci = 2;
  uint32_t argsz = sizeof(DeviceInfo);
  uint32_t flags = 0;
  uint32_t regions = 0;
  uint32_t irqs = 0;
};
struct RegionInfo {
  static constexpr uint32_t kRead = 1;
  static constexpr uint32_t kWrite = 2;
  static constexpr uint32_t kMmap = 4;
  static constexpr uint32_t kCaps = 8;
  uint32_t argsz = sizeof(RegionInfo);
  uint32_t flags = 0;
  uint32_t index = 0;
  uint32_t cap_offset = 0;  // from the start of this struct
  uint64_t size = 0;
  uint64_t offset = 0;
};
struct CapabilityHeader {
  static constexpr uint16_t kSparseMmap = 1;
  uint16_t id = 0;
  uint16_t version = 1;
  uint32_t next = 0;  // from the start of RegionInfo; 0: none
};
struct SparseMmap {
  CapabilityHeader header;
  uint32_t areas = 0;
  uint32_t reserved = 0;
};
struct SparseArea {
  uint64_t offset = 0;
  uint64_t size = 0;
};
struct RegionIoFds {
  uint32_t argsz = sizeof(RegionIoFds);
  uint32_t flags = 0;
  uint32_t index = 0;
  uint32_t count = 0;
};
struct IrqInfo {
  static constexpr uint32_t kEventfd = 1;
  static constexpr uint32_t kNoResize = 8;
  uint32_t argsz = sizeof(IrqInfo);
  uint32_t flags = 0;
  uint32_t index = 0;
  uint32_t count = 0;
};
struct SetIrqs {
  static constexpr uint32_t kDataNone = 1;
  static constexpr uint32_t kDataBool = 2;
  static constexpr uint32_t kDataEventfd = 4;
  static constexpr uint32_t kMask = 8;
  static constexpr uint32_t kUnmask = 16;
  static constexpr uint32_t kTrigger = 32;
  uint32_t argsz = sizeof(SetIrqs);
  uint32_t flags = 0;
  uint32_t index = 0;
  uint32_t start = 0;
  uint32_t count = 0;
};
struct RegionAccess {
  uint64_t offset = 0;
  uint32_t region = 0;
  uint32_t count = 0;
};
struct DmaAccess {
  uint64_t address = 0;
  uint64_t count = 0;
};
static_assert(sizeof(DmaMapRequest) == 32 && sizeof(DmaUnmapRequest) == 24);
static_assert(sizeof(DeviceInfo) == 16 && sizeof(RegionInfo) == 32 && sizeof(SparseMmap) == 16);
static_assert(sizeof(IrqInfo) == 16 && sizeof(SetIrqs) == 20 && sizeof(RegionIoFds) == 16);
static_assert(sizeof(RegionAccess) == 16 && sizeof(DmaAccess) == 16);

// The most data that one access may carry, by the protocol's default.
inline constexpr uint64_t kMaxTransfer = 1u << 20;
// What we put into one message of our own. libvfio-user reads a body with one recv and takes what did
// not fit into the socket's buffer (about 200 KiB) for new commands.
inline constexpr uint64_t kOurTransfer = 64u << 10;
inline constexpr uint64_t kMaxMessage = kMaxTransfer + 256;
// The most descriptors that we take with one message, on either side, and say that we take.
inline constexpr uint32_t kOurMessageFds = 16;

template <typename T>
std::span<const std::byte> Bytes(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span(&value, 1));
}
// A T at `offset` of `data`, if it is all there.
template <typename T>
std::optional<T> Decode(std::span<const std::byte> data, uint64_t offset = 0) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (offset > data.size() || data.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, data.data() + offset, sizeof(T));
  return value;
}

inline constexpr uint64_t kDefaultDmaMaps = 65535;

// The payload of VERSION, both ways.
struct Version {
  uint16_t major = 0;
  uint16_t minor = 0;
  uint32_t max_msg_fds = 1;  // the protocol's default; what the other side can take in one message
  uint64_t max_data_xfer_size = kMaxTransfer;
  std::optional<uint64_t> max_dma_maps;  // where it is named; by default kDefaultDmaMaps
  uint64_t page_sizes = 4096;
  bool twin_socket = false;
  std::optional<uint64_t> twin_fd_index;  // in a reply
};
std::vector<std::byte> EncodeVersion(const Version& version);
// Error: no version, no JSON where there is text, a known field of the wrong type or out of range.
// Unknown ones are ignored.
Result<Version> ParseVersion(std::span<const std::byte> payload);

// A checked reply to GET_REGION_INFO.
struct RegionReply {
  RegionInfo info;
  // What may be mapped: page-aligned, within the region, ascending, disjoint, not empty.
  std::vector<VfioBackend::Area> areas;
  bool dropped = false;  // there were areas that are not whole pages
};
// Error: short, another index, a size or offset that wraps around or is absurd, a list of capabilities
// that does not end or leaves the payload, areas outside the region or over one another.
Result<RegionReply> ParseRegionReply(std::span<const std::byte> payload, uint32_t index);

// One eventfd that a server offers in place of writes to a region.
struct IoFd {
  uint64_t offset = 0;
  uint32_t size = 0;  // 0: any
  size_t fd = 0;      // index into the message's descriptors
  std::optional<uint64_t> datamatch;
};
// The ioeventfds of a reply to GET_REGION_IO_FDS that fit into the region; other kinds are left out.
Result<std::vector<IoFd>> ParseIoFds(std::span<const std::byte> payload, uint32_t index,
                                     uint64_t region_size, size_t fds);

}  // namespace crossbar::vfio_user
