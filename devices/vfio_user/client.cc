#include "devices/vfio_user/client.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/log.h"
#include "base/sys.h"
#include "base/sys_socket.h"
#include "devices/vfio_user/memory_file.h"

namespace crossbar::vfio_user {
namespace {

constexpr unsigned kBars = VFIO_PCI_ROM_REGION_INDEX;
constexpr unsigned kConfig = VFIO_PCI_CONFIG_REGION_INDEX;
constexpr uint32_t kFirstRegionReply = 4096;
constexpr uint32_t kLargestRegionReply = 64u << 10;

// Whole pages of a BAR that are not in `direct`: no memory to map, but a place for DMA to go to.
std::vector<VfioBackend::Area> Gaps(const std::vector<VfioBackend::Area>& direct, uint64_t size) {
  std::vector<VfioBackend::Area> gaps;
  uint64_t at = 0;
  for (const VfioBackend::Area& area : direct) {
    if (area.offset > at) gaps.push_back({at, area.offset - at});
    at = area.offset + area.size;
  }
  const uint64_t end = AlignDown(size, kPageSize);
  if (end > at) gaps.push_back({at, end - at});
  return gaps;
}

// Whether KVM refuses the one beside the other (virt/kvm/eventfd.c, ioeventfd_check_collision). Size 0: writes of any size.
bool Collide(const IoEvent& a, const IoEvent& b) {
  if (a.address != b.address) return false;
  if (a.size == 0 || b.size == 0) return true;
  return a.size == b.size && (!a.datamatch || !b.datamatch || a.datamatch == b.datamatch);
}

}  // namespace

// --- Beginning and end -----------------------------------------------------------------------------

VfioUserBackend::VfioUserBackend(std::unique_ptr<Connection> connection, const Version& version,
                                 std::shared_ptr<ServerProcess> process)
    : connection_(std::move(connection)),
      version_(version),
      process_(std::move(process)),
      domain_(*connection_, version, process_) {}

VfioUserBackend::~VfioUserBackend() {
  LeaveBus();
  connection_->Stop();
  if (process_) process_->KillAndReap();
}

Result<std::unique_ptr<VfioUserBackend>> VfioUserBackend::Connect(const std::string& path,
                                                                  Connection::Limits limits) {
  Fd socket = TRY(Within(sys::ConnectUnix(path), [&] {
    return fmt::format("cannot reach a vfio-user server at {}", path);
  }));
  Options options;
  options.name = "vfio-user " + path;
  options.limits = limits;
  return Create(std::move(socket), std::move(options));
}

Result<std::unique_ptr<VfioUserBackend>> VfioUserBackend::Create(Fd socket, Options options) {
  const auto within = [&] { return options.name; };
  std::unique_ptr<Connection> connection =
      TRY(Connection::Create(std::move(socket), options.name, options.limits));
  const Version version = TRY(Within(connection->Negotiate(), within));
  std::unique_ptr<VfioUserBackend> backend(
      new VfioUserBackend(std::move(connection), version, std::move(options.process)));
  TRY(Within(backend->Discover(), within));
  VfioUserDomain& domain = backend->domain_;
  TRY(backend->connection_->Serve([&domain](const Message& message) {
    return domain.Serve(message);
  }));
  return backend;
}

Result<> VfioUserBackend::JoinBus(AddressSpace& space) {
  domain_.Attach(space);
  membership_ = TRY(space.AddDomain(domain_));
  return {};
}

void VfioUserBackend::LeaveBus() {
  domain_.SetBusMaster(false);
  uint16_t command = 0;
  const auto bytes = std::as_writable_bytes(std::span(&command, 1));
  // As far as its driver can see to that: the unmaps that follow do not depend on it.
  if (!connection_->broken() && Read(kConfig, PCI_COMMAND, bytes) &&
      (command & PCI_COMMAND_MASTER) != 0) {
    command = static_cast<uint16_t>(command & ~PCI_COMMAND_MASTER);
    (void)Write(kConfig, PCI_COMMAND, bytes);
  }
  membership_.Reset();
}

// --- What the device has ---------------------------------------------------------------------------

Result<> VfioUserBackend::Discover() {
  const DeviceInfo query;
  Connection::Request request;
  request.command = Command::kGetInfo;
  request.body = Bytes(query);
  request.max_reply = 256;
  const Message reply = TRY(connection_->Call(request));
  const auto info = Decode<DeviceInfo>(reply.body);
  if (!info) return Fail("{} bytes of device info", reply.body.size());
  if ((info->flags & DeviceInfo::kPci) == 0) return Fail("the device is not a PCI device");
  if (info->regions <= kConfig) return Fail("the device has {} regions", info->regions);
  can_reset_ = (info->flags & DeviceInfo::kReset) != 0;
  for (unsigned i = 0; i < std::min(info->regions, kRegions); ++i) {
    TRY(Within(DiscoverRegion(i), [&] { return fmt::format("region {}", i); }));
  }
  for (unsigned i = 0; i < std::min(info->irqs, kIrqs); ++i) TRY(DiscoverIrq(i));
  const Region& config = regions_[kConfig].shown;
  if (config.size < PCI_CFG_SPACE_SIZE || !config.readable || !config.writable)
    return Fail("the device has no configuration space");
  if (std::ranges::all_of(std::span(regions_).first(kBars),
                          [](const RegionState& bar) { return bar.size == 0; }))
    return Fail("the device has no BARs");
  return {};
}

// libvfio-user sends capabilities and descriptor only where the reply was announced as large enough.
Result<Message> VfioUserBackend::GetRegionInfo(unsigned index) {
  RegionInfo query;
  query.index = index;
  for (query.argsz = kFirstRegionReply;; query.argsz = kLargestRegionReply) {
    Connection::Request request;
    request.command = Command::kGetRegionInfo;
    request.body = Bytes(query);
    request.max_reply = query.argsz;
    request.max_fds = 1;
    Message reply = TRY(connection_->Call(request));
    const auto info = Decode<RegionInfo>(reply.body);
    if (!info || info->argsz <= query.argsz || query.argsz == kLargestRegionReply) return reply;
  }
}

Result<> VfioUserBackend::DiscoverRegion(unsigned index) {
  Message message = TRY(GetRegionInfo(index));
  const RegionReply reply = TRY(ParseRegionReply(message.body, index));
  RegionState& region = regions_[index];
  region.size = reply.info.size;
  region.offset = reply.info.offset;
  if (region.size == 0) return {};
  region.shown.readable = (reply.info.flags & RegionInfo::kRead) != 0;
  region.shown.writable = (reply.info.flags & RegionInfo::kWrite) != 0;
  // A BAR is a power of two; what lies behind the server's part reads as all ones.
  region.shown.size = index < kBars ? std::bit_ceil(region.size) : region.size;
  if (index >= kBars) return {};
  JudgeFile(index, reply, message);
  region.shown.mappable = region.direct;
  if (region.shown.readable && region.shown.writable) {
    const std::vector<Area> gaps = Gaps(region.direct, region.size);
    region.shown.mappable.insert(region.shown.mappable.end(), gaps.begin(), gaps.end());
    std::ranges::sort(region.shown.mappable, {}, &Area::offset);
  }
  return {};
}

// Which of the areas can be mapped directly: those of a file that can neither shrink nor is too short.
void VfioUserBackend::JudgeFile(unsigned index, const RegionReply& reply, Message& message) {
  RegionState& region = regions_[index];
  if (reply.areas.empty() || message.fds.empty()) return;
  const uint64_t end = region.offset + reply.areas.back().offset + reply.areas.back().size;
  std::optional<std::string> refused = WhyItMayFault(message.fds.front().get(), end);
  if (!IsAligned(region.offset, kPageSize)) refused = "does not start at a page";
  if (refused) {
    LogWarning("{}: the file of region {} {}: the guest's accesses to it trap", name(), index,
               *refused);
    return;
  }
  region.direct = reply.areas;
  region.file = std::move(message.fds.front());
}

Result<> VfioUserBackend::DiscoverIrq(unsigned index) {
  IrqInfo query;
  query.index = index;
  Connection::Request request;
  request.command = Command::kGetIrqInfo;
  request.body = Bytes(query);
  request.max_reply = 256;
  const Message reply = TRY(connection_->Call(request));
  const auto info = Decode<IrqInfo>(reply.body);
  // The most that PCI has of each kind (PCIe 6.0, 7.7.1.2 and 7.7.2.2).
  constexpr std::array<uint32_t, kIrqs> kMost = {1, 32, 2048, 1, 1};
  if (!info || info->index != index || info->count > kMost[index])
    return Fail("nonsense about interrupts of kind {}", index);
  if ((info->flags & IrqInfo::kEventfd) == 0) return {};
  irqs_[index].count = info->count;
  irqs_[index].resizable = (info->flags & IrqInfo::kNoResize) == 0;
  return {};
}

VfioBackend::Region VfioUserBackend::region(unsigned index) const {
  return index < kRegions ? regions_[index].shown : Region();
}

VfioBackend::Interrupt VfioUserBackend::interrupt(unsigned index) const {
  return index < kIrqs ? irqs_[index] : Interrupt();
}

// --- Regions ---------------------------------------------------------------------------------------

Result<> VfioUserBackend::Access(unsigned region, uint64_t offset, uint64_t size) const {
  if (region >= kRegions || offset > regions_[region].size ||
      size > regions_[region].size - offset) {
    return std::unexpected(
        Error(EIO, fmt::format("{}: region {} ends before {:#x}+{:#x}", name(), region, offset,
                               size)));
  }
  return {};
}

// A reply that is no error tells of the whole access and of no other, with `data` bytes behind it: what
// cannot be done is refused. Whoever answers something else is lost.
Result<> VfioUserBackend::CheckReply(const RegionAccess& asked, std::span<const std::byte> reply,
                                     uint64_t data) {
  const auto echo = Decode<RegionAccess>(reply);
  if (echo && echo->offset == asked.offset && echo->region == asked.region &&
      echo->count == asked.count && reply.size() == sizeof asked + data)
    return {};
  const std::string what = fmt::format("a wrong answer to an access to region {} at {:#x}+{:#x}",
                                       asked.region, asked.offset, asked.count);
  connection_->Break(what);
  return std::unexpected(Error(ENOTCONN, fmt::format("{}: {}", name(), what)));
}

Result<> VfioUserBackend::Read(unsigned region, uint64_t offset, std::span<std::byte> data) {
  TRY(Access(region, offset, data.size()));
  while (!data.empty()) {
    const RegionAccess access{offset, region,
                              static_cast<uint32_t>(std::min<uint64_t>(data.size(), largest_access()))};
    Connection::Request request;
    request.command = Command::kRegionRead;
    request.body = Bytes(access);
    request.max_reply = sizeof access + access.count;
    const Message reply = TRY(connection_->Call(request));
    TRY(CheckReply(access, reply.body, access.count));
    std::memcpy(data.data(), reply.body.data() + sizeof access, access.count);
    data = data.subspan(access.count);
    offset += access.count;
  }
  return {};
}

Result<> VfioUserBackend::Write(unsigned region, uint64_t offset, std::span<const std::byte> data) {
  TRY(Access(region, offset, data.size()));
  if (region == kConfig) NoteCommand(offset, data);
  while (!data.empty()) {
    const RegionAccess access{offset, region,
                              static_cast<uint32_t>(std::min<uint64_t>(data.size(), largest_access()))};
    Connection::Request request;
    request.command = Command::kRegionWrite;
    request.body = Bytes(access);
    request.data = data.first(access.count);
    request.max_reply = sizeof access;
    const Message reply = TRY(connection_->Call(request));
    TRY(CheckReply(access, reply.body, 0));
    data = data.subspan(access.count);
    offset += access.count;
  }
  return {};
}

// Bus mastering holds for DMA that we carry out, too; off counts before the server hears of it.
void VfioUserBackend::NoteCommand(uint64_t offset, std::span<const std::byte> data) {
  static_assert(PCI_COMMAND_MASTER < 0x100, "it is in the low byte");
  if (offset > PCI_COMMAND || PCI_COMMAND - offset >= data.size()) return;
  const auto low = std::to_integer<unsigned>(data[PCI_COMMAND - offset]);
  domain_.SetBusMaster((low & PCI_COMMAND_MASTER) != 0);
}

Result<Backing> VfioUserBackend::MapArea(unsigned index, const Area& area) {
  RegionState& region = regions_.at(index);
  Backing backing;
  backing.kind = Backing::Kind::kBar;
  backing.writable = region.shown.writable;
  const auto holds = [&](const Area& other) {
    return area.offset >= other.offset && area.size <= other.size &&
           area.offset - other.offset <= other.size - area.size;
  };
  if (std::ranges::none_of(region.direct, holds)) return backing;  // trapped, and forwarded
  const uint64_t offset = region.offset + area.offset;
  // Like the file, the address is a multiple of a huge page where it can be.
  const uint64_t alignment = IsAligned(offset, 2 * kMiB) && area.size >= 2 * kMiB ? 2 * kMiB : kPageSize;
  const int protection = backing.writable ? PROT_READ | PROT_WRITE : PROT_READ;
  mappings_.push_back(
      TRY(HostMapping::Map(region.file.get(), offset, area.size, protection, alignment)));
  backing.host = mappings_.back().address();
  backing.file = Backing::Handle{region.file.get(), offset};
  return backing;
}

std::vector<IoEvent> VfioUserBackend::IoEvents(unsigned index) {
  if (index >= kBars || regions_[index].size == 0) return {};
  RegionState& region = regions_[index];
  if (!region.events) {
    Result<std::vector<IoEvent>> events = FetchIoEvents(index);
    if (!events) LogDebug("no ioeventfds: {}", events.error().message());
    region.events = events ? *std::move(events) : std::vector<IoEvent>();
  }
  return *region.events;
}

Result<std::vector<IoEvent>> VfioUserBackend::FetchIoEvents(unsigned index) {
  RegionIoFds query;
  query.argsz = 16u << 10;
  query.index = index;
  Connection::Request request;
  request.command = Command::kGetRegionIoFds;
  request.body = Bytes(query);
  request.max_reply = query.argsz;
  request.max_fds = kOurMessageFds;
  Message reply = TRY(connection_->Call(request));
  RegionState& region = regions_[index];
  std::vector<IoEvent> events;
  for (const IoFd& one : TRY(ParseIoFds(reply.body, index, region.size, reply.fds.size()))) {
    const int fd = reply.fds[one.fd].get();
    const IoEvent event{Gpa(one.offset), one.size, one.datamatch, fd};
    const bool collides = std::ranges::any_of(events, [&](const IoEvent& other) { return Collide(event, other); });
    // KVM takes neither, and a BAR should not stay unplaced for that.
    if (!collides && sys::IsEventFd(fd)) events.push_back(event);
  }
  for (Fd& fd : reply.fds) {
    if (sys::IsEventFd(fd.get())) region.event_fds.push_back(std::move(fd));
  }
  return events;
}

// --- Interrupts and reset --------------------------------------------------------------------------

Result<> VfioUserBackend::SendIrqs(const SetIrqs& irqs, std::span<const int> fds) {
  Connection::Request request;
  request.command = Command::kSetIrqs;
  request.body = Bytes(irqs);
  request.fds = fds;
  TRY(connection_->Call(request));
  return {};
}

// In runs of all descriptors or none, as many as the server takes at once. Vectors without one are set
// by a message that carries none.
Result<> VfioUserBackend::SetInterrupts(unsigned index, uint32_t start,
                                        std::span<const int> eventfds) {
  const size_t most = std::clamp<size_t>(version_.max_msg_fds, 1, sys::kMaxMessageFds);
  while (!eventfds.empty()) {
    const bool none = eventfds.front() < 0;
    const auto other = std::ranges::find_if(eventfds, [&](int fd) { return (fd < 0) != none; });
    auto count = static_cast<size_t>(other - eventfds.begin());
    if (!none) count = std::min(count, most);
    SetIrqs irqs;
    irqs.flags = SetIrqs::kDataEventfd | SetIrqs::kTrigger;
    irqs.index = index;
    irqs.start = start;
    irqs.count = static_cast<uint32_t>(count);
    TRY(SendIrqs(irqs, none ? std::span<const int>() : eventfds.first(count)));
    start += irqs.count;
    eventfds = eventfds.subspan(count);
  }
  return {};
}

Result<> VfioUserBackend::DisableInterrupts(unsigned index) {
  SetIrqs irqs;
  irqs.flags = SetIrqs::kDataNone | SetIrqs::kTrigger;
  irqs.index = index;
  return SendIrqs(irqs, {});
}

Result<> VfioUserBackend::UnmaskIntx() {
  SetIrqs irqs;
  irqs.flags = SetIrqs::kDataNone | SetIrqs::kUnmask;
  irqs.index = VFIO_PCI_INTX_IRQ_INDEX;
  irqs.count = 1;
  return SendIrqs(irqs, {});
}

Result<bool> VfioUserBackend::SetIntxUnmaskEvent(int) { return false; }

Result<> VfioUserBackend::Reset() {
  domain_.SetBusMaster(false);
  Connection::Request request;
  request.command = Command::kReset;
  TRY(connection_->Call(request));
  return {};
}

}  // namespace crossbar::vfio_user
