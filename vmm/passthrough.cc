#include "vmm/passthrough.h"

#include <fcntl.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/kvm_uapi.h"
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

Result<> CheckDistinct(const std::vector<DeviceSpec>& specs) {
  std::set<std::string> sources;  // of models there may be several
  std::set<std::string> ids;
  std::set<uint8_t> slots;
  for (const DeviceSpec& spec : specs) {
    if (spec.model.empty() && !sources.insert(spec.source()).second)
      return Fail("--device {} is given twice", spec.source());
    if (!ids.insert(spec.id).second)
      return Fail("two --device have the id {}; give them different id=", spec.id);
    if (spec.slot && !slots.insert(*spec.slot).second)
      return Fail("two --device have the slot {:x}", *spec.slot);
  }
  return {};
}

Result<std::unique_ptr<VfioBackend>> OpenBackend(VfioHost& host, const DeviceSpec& spec) {
  if (!spec.host.empty()) return TRY(host.OpenDevice(spec.host));
  if (!spec.socket.empty()) return TRY(vfio_user::VfioUserBackend::Connect(spec.socket));
  vfio_user::ChildServer::Options options;
  options.name = spec.id;
  options.arguments = spec.model_arguments;
  return TRY(vfio_user::ChildServer::StartBackend(options));
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
  TRY(CheckDistinct(specs));
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
  for (const int group : host_.group_fds()) {
    kvm_device_attr attribute{};
    attribute.group = KVM_DEV_VFIO_GROUP;
    attribute.attr = KVM_DEV_VFIO_GROUP_ADD;
    attribute.addr = reinterpret_cast<uint64_t>(&group);
    TRY(sys::Ioctl(kvm_vfio_.get(), SYS_REQUEST(KVM_SET_DEVICE_ATTR), &attribute));
  }
  return {};
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
  if (!host_.containers().empty()) TRY(RegisterGroups(machine.vm_fd));
  interrupts_ = std::make_unique<KvmInterruptRouter>(machine.vm_fd, machine.platform.ioapic_pins,
                                                     machine.most_routes);
  watcher_ = TRY(WatcherThread::Start());
  TRY(ConnectWindows(machine));
  for (const auto& container : host_.containers()) {
    AddressSpace::DomainHandle handle = TRY(machine.space.AddDomain(*container));
    domains_.push_back(std::move(handle));
  }
  // Those that ask for a slot come first, so that no other takes it.
  for (const bool asks : {true, false}) {
    for (Opened& opened : opened_) {
      if (opened.spec.slot.has_value() != asks) continue;
      const std::string source = opened.spec.source();
      TRY(Within(ConnectDevice(machine, std::move(opened)),
                 [&] { return fmt::format("--device {}", source); }));
    }
  }
  opened_.clear();
  return {};
}

Result<> Passthrough::ConnectDevice(const Machine& machine, Opened opened) {
  const uint8_t slot = opened.spec.slot ? *opened.spec.slot : TRY(FreeSlot(machine.pci));
  PassthroughFunction::Settings settings;
  settings.id = opened.spec.id;
  settings.p2p = opened.spec.p2p;
  settings.rom = opened.spec.rom;
  settings.rom_image = std::move(opened.rom);
  PassthroughFunction::Surroundings around{machine.space, *interrupts_, *watcher_, zaps_, windows_};
  for (size_t pin = 0; pin < 4; ++pin)
    around.intx_gsi[pin] = machine.platform.pci.intx_gsi[(slot + pin) % 4];
  std::shared_ptr<PassthroughFunction> function = TRY(PassthroughFunction::Create(
      std::move(opened.backend), std::move(settings), std::move(around)));
  functions_.push_back(function);
  return machine.pci.root_bus().Add({slot, 0}, std::move(function));
}

Result<> Passthrough::AssignResources() {
  return pci_ == nullptr ? Result<>() : AssignPciResources(*pci_, layout_);
}

// G11: BARs leave every domain before a device's file closes, and the domains end after both.
void Passthrough::Close() {
  for (const auto& function : functions_) function->Close();
  functions_.clear();
  domains_.clear();
  watcher_.reset();
}

}  // namespace crossbar
