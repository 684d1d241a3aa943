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
  if (device.driver != "vfio-pci") {
    return std::unexpected(
        Error::Of("{} is bound to {}, not to vfio-pci", address,
                  device.driver.empty() ? "no driver" : device.driver)
            .WithHint(fmt::format("driverctl set-override {} vfio-pci", address)));
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

Result<VfioGroup*> VfioHost::AttachGroup(unsigned number) {
  if (const auto found = groups_.find(number); found != groups_.end()) return found->second.get();
  std::unique_ptr<VfioGroup> group = TRY(VfioGroup::Open(roots_, number));
  Result<> attached = Fail("there is no container");
  for (const auto& container : containers_) {
    attached = container->Attach(*group);
    if (attached || attached.error().code() == EPERM) break;
  }
  if (!attached && (containers_.empty() || attached.error().code() != EPERM)) {
    if (!containers_.empty())
      LogInfo("IOMMU group {} does not fit into a container with the others ({}): it gets its own",
              number, attached.error().message());
    std::unique_ptr<VfioContainer> container =
        TRY(VfioContainer::Open(roots_, static_cast<unsigned>(containers_.size())));
    attached = container->Attach(*group);
    if (attached) containers_.push_back(std::move(container));
  }
  TRY(Within(std::move(attached), [&] { return fmt::format("cannot attach IOMMU group {}", number); }));
  return groups_.emplace(number, std::move(group)).first->second.get();
}

Result<std::unique_ptr<KernelBackend>> VfioHost::OpenDevice(const std::string& address) {
  HostPciDevice device = TRY(FindUsable(roots_, address));
  VfioGroup* const group = TRY(AttachGroup(*device.group));
  Fd fd = TRY(group->OpenDevice(address));
  return KernelBackend::Create(std::move(device), std::move(fd));
}

Result<std::vector<GuestRange>> VfioHost::Untranslated() const {
  std::vector<GuestRange> all;
  for (const auto& container : containers_) {
    const std::vector<GuestRange> ranges = TRY(container->IovaRanges());
    if (!ranges.empty()) std::ranges::move(Complement(ranges), std::back_inserter(all));
  }
  std::ranges::sort(all, {}, &GuestRange::start);
  return all;
}

std::vector<int> VfioHost::group_fds() const {
  std::vector<int> fds;
  for (const auto& [number, group] : groups_) fds.push_back(group->fd());
  return fds;
}

}  // namespace crossbar
