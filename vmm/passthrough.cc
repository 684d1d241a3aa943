#include "vmm/passthrough.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <set>
#include <utility>

#include "base/kvm_uapi.h"
#include "base/log.h"
#include "base/sys.h"
#include "devices/vfio_user/child_server.h"
#include "devices/vfio_user/client.h"

namespace crossbar {
namespace {

constexpr uint64_t kMostRom = 16 * kMiB;

Result<std::vector<std::byte>> ReadRom(const std::string& path) {
  if (path.empty()) return std::vector<std::byte>();
  const Fd file = TRY(sys::Open(path, O_RDONLY));
  const uint64_t size = TRY(sys::FileSize(file.get()));
  if (size == 0 || size > kMostRom)
    return Fail("{} has {} bytes; an expansion ROM has 1 to {}", path, size, kMostRom);
  std::vector<std::byte> bytes(size);
  size_t done = 0;
  while (done < bytes.size()) {
    const size_t n = TRY(sys::Read(file.get(), std::span(bytes).subspan(done)));
    if (n == 0) return Fail("{} was cut short while it was read", path);
    done += n;
  }
  return bytes;
}

Result<std::unique_ptr<VfioBackend>> OpenBackend(VfioHost& host, const DeviceSpec& spec) {
  if (!spec.host.empty()) return TRY(host.OpenDevice(spec.host));
  if (!spec.socket.empty()) return TRY(vfio_user::VfioUserBackend::Connect(spec.socket));
  vfio_user::ChildServer::Options options;
  options.name = spec.id;
  options.arguments = spec.model_arguments;
  return TRY(vfio_user::ChildServer::StartBackend(options));
}

// RLIMIT_MEMLOCK counts guest RAM that is pinned, once for each container, and no BARs but those that are a vfio-user
// server's memory (vfio_iommu_type1.c, vfio_pin_pages_remote).
Error WithMemlock(Error error, uint64_t bytes) {
  rlimit limit{};
  if (error.code() != ENOMEM || ::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 ||
      limit.rlim_cur == RLIM_INFINITY)
    return error;
  return std::move(error).WithHint(fmt::format(
      "DMA locks all guest RAM, {} KiB, and the limit on that is {}: ulimit -l {}, or memlock in "
      "/etc/security/limits.conf", bytes / kKiB, limit.rlim_cur / kKiB, bytes / kKiB));
}

Result<> TellKvm(const Fd& kvm_vfio, uint64_t what, int group) {
  kvm_device_attr attribute{};
  attribute.group = KVM_DEV_VFIO_GROUP;
  attribute.attr = what;
  attribute.addr = reinterpret_cast<uint64_t>(&group);
  TRY(sys::Ioctl(kvm_vfio.get(), SYS_REQUEST(KVM_SET_DEVICE_ATTR), &attribute));
  return {};
}

// What no window holds alone, whatever else there is.
Result<> CheckBarsFit(const VfioBackend& backend, const PlatformInfo::Pci& pci) {
  const uint64_t largest = std::max(pci.window32.size, pci.window64.size);
  for (unsigned bar = 0; bar < Bars::kRom; ++bar) {
    const uint64_t size = backend.region(bar).size;
    if (size <= largest) continue;
    return std::unexpected(
        Error::Of("BAR {} has {} GiB, and the IOMMU and the processor leave a PCI window of {} GiB",
                  bar, size / kGiB, largest / kGiB)
            .WithHint("leave the device out, or take a host whose IOMMU translates more addresses"));
  }
  return {};
}

// The first device number that neither a device nor a --device has.
Result<uint8_t> FreeSlot(PciRoot& pci) {
  for (uint8_t slot = 1; slot < 32; ++slot) {
    const PciAddress address{pci.first_bus(), {slot, 0}};
    if (pci.Read(address, 0, 2) == 0xffff) return slot;
  }
  return Fail("the root bus is full");
}

}  // namespace

Result<std::unique_ptr<Passthrough>> Passthrough::Open(const std::vector<DeviceSpec>& specs) {
  std::unique_ptr<Passthrough> passthrough(new Passthrough);
  for (const DeviceSpec& spec : specs) {
    const auto within = [&] { return fmt::format("--device {}", spec.source()); };
    Opened opened;
    opened.spec = spec;
    opened.rom = TRY(Within(ReadRom(spec.rom_file), within));
    opened.backend = TRY(Within(OpenBackend(passthrough->host_, spec), within));
    passthrough->opened_.push_back(std::move(opened));
  }
  passthrough->unusable_ = TRY(passthrough->host_.Unusable());
  return passthrough;
}

// KVM asks VFIO through it whether DMA is coherent, and lets posted interrupts work.
Result<> Passthrough::RegisterGroups(int vm_fd) {
  kvm_create_device create{};
  create.type = KVM_DEV_TYPE_VFIO;
  TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_CREATE_DEVICE), &create));
  kvm_vfio_ = Fd(static_cast<int>(create.fd));
  for (const int group : host_.group_fds())
    TRY(TellKvm(kvm_vfio_, KVM_DEV_VFIO_GROUP_ADD, group));
  return {};
}

Result<> Passthrough::AddDomains(const Machine& machine) {
  for (const auto& container : host_.containers()) {
    Result<AddressSpace::DomainHandle> handle = machine.space.AddDomain(*container);
    if (!handle) {
      uint64_t ram = 0;
      for (const GuestRange& bank : machine.platform.ram) ram += bank.size;
      return std::unexpected(
          WithMemlock(std::move(handle).error(), ram * host_.containers().size()));
    }
    MutexLock lock(domains_mutex_);
    domains_.emplace(container.get(), *std::move(handle));
  }
  return {};
}

// The order: as long as KVM has the group it stays open, and a container gives up all that is mapped in
// it when its last group leaves, which would be news to the AddressSpace.
void Passthrough::LetGroupGo(int group_fd, VfioContainer* container) {
  if (kvm_vfio_.valid()) {
    const Result<> told = TellKvm(kvm_vfio_, KVM_DEV_VFIO_GROUP_DEL, group_fd);
    if (!told) LogWarning("KVM keeps a group that has no device left: {}", told.error().message());
  }
  if (container == nullptr) return;
  std::map<const VfioContainer*, AddressSpace::DomainHandle>::node_type ended;
  MutexLock lock(domains_mutex_);
  ended = domains_.extract(container);
}

Result<> Passthrough::ConnectWindows(const Machine& machine) {
  const PlatformInfo::Pci& pci = machine.platform.pci;
  layout_ = {pci.window32, pci.window64, {Gpa(pci.io_base), pci.io_size}, pci.intx_gsi};
  for (const GuestRange& range : {pci.window32, pci.window64}) {
    auto window = std::make_shared<PciWindow>(range.start.value(), range.size);
    TRY(machine.mmio.Add(window->start(), window->size(), window));
    windows_.memory.push_back(std::move(window));
  }
  windows_.ports = std::make_shared<PciWindow>(pci.io_base, pci.io_size);
  return machine.pio.Add(windows_.ports->start(), windows_.ports->size(), windows_.ports);
}

Result<> Passthrough::Connect(const Machine& machine) {
  pci_ = &machine.pci;
  host_.OnLeave([this](int group, VfioContainer* container) { LetGroupGo(group, container); });
  if (!host_.containers().empty()) TRY(RegisterGroups(machine.vm_fd));
  interrupts_ = std::make_unique<KvmInterruptRouter>(machine.vm_fd, machine.platform.ioapic_pins,
                                                     machine.most_routes);
  TRY(ConnectWindows(machine));
  TRY(AddDomains(machine));
  // Those that ask for a slot come first, so that no other takes it.
  for (const Opened& opened : opened_)
    if (opened.spec.slot && !opened.spec.port.empty()) TRY(PortOf(machine.pci, opened.spec));
  for (const bool asks : {true, false}) {
    for (Opened& opened : opened_) {
      if ((opened.spec.slot && opened.spec.port.empty()) != asks) continue;
      const std::string source = opened.spec.source();
      TRY(Within(ConnectDevice(machine, std::move(opened)),
                 [&] { return fmt::format("--device {}", source); }));
    }
  }
  opened_.clear();
  return StartFaults();
}

uint8_t Passthrough::buses() const {
  std::set<std::string> ports;
  for (const Opened& opened : opened_)
    if (!opened.spec.port.empty()) ports.insert(opened.spec.port);
  return static_cast<uint8_t>(ports.size());
}

// BARs and the windows of ports are aligned to the largest in them, so all may leave gaps of as much again.
uint64_t Passthrough::window_bytes() const {
  constexpr uint64_t kMost = uint64_t{1} << 52;  // what is larger is refused later, by its name
  uint64_t all = 0;
  for (const Opened& opened : opened_)
    for (unsigned bar = 0; bar < Bars::kRom; ++bar)
      all += std::bit_ceil(std::min(opened.backend->region(bar).size, kMost));
  return 2 * all;
}

Result<Passthrough::Port*> Passthrough::PortOf(PciRoot& pci, const DeviceSpec& spec) {
  const auto [found, made] = ports_.try_emplace(spec.port);
  Port& port = found->second;
  if (!made) return &port;
  port.function = std::make_shared<PciRootPort>();
  port.slot = spec.slot ? *spec.slot : TRY(FreeSlot(pci));
  TRY(pci.root_bus().Add({port.slot, 0}, port.function));
  return &port;
}

// A port has one device behind it, of up to eight functions.
Result<Passthrough::Place> Passthrough::PlaceOf(PciRoot& pci, const DeviceSpec& spec) {
  if (spec.port.empty()) {
    const uint8_t slot = spec.slot ? *spec.slot : TRY(FreeSlot(pci));
    return Place{pci.root_bus(), {slot, 0}, slot, nullptr};
  }
  Port& port = *TRY(PortOf(pci, spec));
  if (port.devices == 8) return Fail("port={} has 8 devices, as many as a port can have", spec.port);
  return Place{port.function->bus(), {0, port.devices++}, port.slot, port.function.get()};
}

Result<> Passthrough::ConnectDevice(const Machine& machine, Opened opened) {
  TRY(CheckBarsFit(*opened.backend, machine.platform.pci));
  const Place place = TRY(PlaceOf(machine.pci, opened.spec));
  PassthroughFunction::Settings settings;
  settings.id = opened.spec.id;
  settings.p2p = opened.spec.p2p;
  settings.rom = opened.spec.rom;
  settings.rom_image = std::move(opened.rom);
  watchers_.push_back(TRY(WatcherThread::Start()));
  WatcherThread& watcher = *watchers_.back();
  PassthroughFunction::Surroundings around{machine.space, *interrupts_, watcher, zaps_, windows_};
  around.windows.above = place.above;
  for (size_t pin = 0; pin < 4; ++pin)
    around.intx_gsi[pin] = machine.platform.pci.intx_gsi[(place.slot + pin) % 4];
  std::shared_ptr<PassthroughFunction> function = TRY(PassthroughFunction::Create(
      std::move(opened.backend), std::move(settings), std::move(around)));
  functions_.push_back(function);
  if (opened.spec.fault) faults_.push_back({*opened.spec.fault, function, &watcher, Fd()});
  return place.bus.Add(place.devfn, std::move(function));
}

// Once all devices have their places.
Result<> Passthrough::StartFaults() {
  for (PlannedFault& planned : faults_) {
    planned.timer = TRY(sys::IntervalTimer(planned.fault.after));
    const auto once = [watcher = planned.watcher, timer = planned.timer.get(), cause = planned.fault.cause,
                       function = planned.function] {
      watcher->Unwatch(timer);
      function->Inject(cause);
    };
    TRY(planned.watcher->Watch(planned.timer.get(), once));
  }
  return {};
}

Result<> Passthrough::AssignResources() {
  return pci_ == nullptr ? Result<>() : AssignPciResources(*pci_, layout_);
}

// G11: BARs leave every domain before a device's file closes. A domain ends after the last device in it.
void Passthrough::Close() {
  for (const PlannedFault& planned : faults_)
    if (planned.timer.valid()) planned.watcher->Unwatch(planned.timer.get());
  faults_.clear();
  for (const auto& function : functions_) function->Close();
  functions_.clear();
  opened_.clear();  // where Connect failed
  watchers_.clear();
}

}  // namespace crossbar
