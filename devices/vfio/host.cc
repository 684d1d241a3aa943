#include "devices/vfio/host.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace crossbar {
namespace {

Result<HostPciDevice> FindUsable(const HostRoots& roots, const std::string& address) {
  HostPciDevice device = TRY(FindHostPciDevice(roots, address));
  if (!device.group) {
    return std::unexpected(
        Error::Of("{} is behind no IOMMU", address)
            .WithHint("turn the IOMMU on in the firmware and on the kernel's command line "
                      "(intel_iommu=on; AMD's is on where the firmware has it on)"));
  }
  if (device.bridge)
    return std::unexpected(Error::Of("{} is a bridge, which VFIO does not pass through", address)
                               .WithHint("name a device behind it"));
  if (device.driver != "vfio-pci") {
    return std::unexpected(
        Error::Of("{} is bound to {}, not to vfio-pci", address,
                  device.driver.empty() ? "no driver" : device.driver)
            .WithHint("bind it: " + HowToBind(roots, {device})));
  }
  return device;
}

// What `ranges` (ascending) leave of all 64-bit addresses.
std::vector<GuestRange> Complement(const std::vector<GuestRange>& ranges) {
  std::vector<GuestRange> rest;
  uint64_t next = 0;
  for (const GuestRange& range : ranges) {
    if (range.start.value() > next) rest.push_back({Gpa(next), range.start.value() - next});
    next = range.end().value();
  }
  if (next != 0) rest.push_back({Gpa(next), ~next + 1});
  return rest;
}

}  // namespace

Result<VfioContainer*> VfioHost::ContainerFor(const VfioGroup& group) {
  for (const auto& container : containers_) {
    const Result<> attached = container->Attach(group);
    if (attached) return container.get();
    // The group itself cannot be had, whatever the container.
    if (attached.error().code() == EPERM || attached.error().code() == EBUSY)
      return std::unexpected(attached.error());
    LogInfo("IOMMU group {} does not fit into {}: {}", group.number(), container->name(),
            attached.error().message());
  }
  std::unique_ptr<VfioContainer> container =
      TRY(VfioContainer::Open(roots_, static_cast<unsigned>(containers_.size())));
  TRY(container->Attach(group));
  return containers_.emplace_back(std::move(container)).get();
}

Result<VfioHost::Attached> VfioHost::AttachGroup(unsigned number) {
  {
    MutexLock lock(mutex_);
    if (const auto found = groups_.find(number); found != groups_.end())
      return Attached{found->second.group.lock(), found->second.container};
  }
  std::unique_ptr<VfioGroup> opened = TRY(VfioGroup::Open(roots_, number));
  VfioContainer* const container = TRY(Within(
      ContainerFor(*opened), [&] { return fmt::format("cannot attach IOMMU group {}", number); }));
  const std::shared_ptr<const VfioGroup> group(opened.release(), [this](const VfioGroup* last) {
    Leave(*last);
    delete last;
  });
  MutexLock lock(mutex_);
  groups_[number] = {group, container};
  return Attached{group, container};
}

void VfioHost::OnLeave(LeaveHandler handler) {
  MutexLock lock(mutex_);
  on_leave_ = std::move(handler);
}

void VfioHost::Leave(const VfioGroup& group) {
  LeaveHandler handler;
  VfioContainer* container = nullptr;
  {
    MutexLock lock(mutex_);
    container = groups_.at(group.number()).container;
    groups_.erase(group.number());
    for (const auto& [number, other] : groups_)
      if (other.container == container) container = nullptr;
    handler = on_leave_;
  }
  if (handler) handler(group.fd(), container);
}

// Between `opened` and those before it, either way.
void VfioHost::NotePeers(Opened opened) {
  const auto note = [](const Opened& initiator, const Opened& target) {
    const auto reason = ReachedPastIommu(initiator.turns, target.device);
    if (!reason) return;
    LogWarning("{} can reach the BARs of {} past the IOMMU, and a zap does not end that: {}",
               initiator.device.address, target.device.address, *reason);
    initiator.container->AddUnguarded(
        target.device.resources, fmt::format("{} passes it by: {}", initiator.device.address, *reason));
  };
  for (const Opened& other : opened_) {
    note(other, opened);
    note(opened, other);
  }
  opened_.push_back(std::move(opened));
}

Result<std::unique_ptr<KernelBackend>> VfioHost::OpenDevice(const std::string& address) {
  const HostPciDevice device = TRY(FindUsable(roots_, address));
  Attached attached = TRY(AttachGroup(*device.group));
  Fd fd = TRY(attached.group->OpenDevice(address));
  std::unique_ptr<KernelBackend> backend =
      TRY(KernelBackend::Create(device, std::move(attached.group), std::move(fd)));
  NotePeers({device, attached.container, TurnsOf(device)});
  return backend;
}

Result<std::vector<GuestRange>> VfioHost::Unusable() const {
  std::vector<GuestRange> all;
  for (const auto& container : containers_) {
    const std::vector<GuestRange> ranges = TRY(container->IovaRanges());
    if (!ranges.empty()) std::ranges::move(Complement(ranges), std::back_inserter(all));
  }
  for (const Opened& opened : opened_) {
    for (const PciTurn& turn : opened.turns) {
      for (const GuestRange& window : turn.windows) {
        LogInfo("guest memory keeps out of {}: DMA of {} does not come through there, as {}", window,
                opened.device.address, turn.reason);
        all.push_back(window);
      }
    }
  }
  std::ranges::sort(all, {}, &GuestRange::start);
  return all;
}

std::vector<int> VfioHost::group_fds() const {
  MutexLock lock(mutex_);
  std::vector<int> fds;
  for (const auto& [number, entry] : groups_)
    if (const auto group = entry.group.lock()) fds.push_back(group->fd());
  return fds;
}

}  // namespace crossbar
