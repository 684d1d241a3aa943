// VfioHost: the kernel's VFIO as one VM uses it: groups, containers, and the devices opened from them.
//
// Owned by Vm, which opens all devices before it lays out guest memory: what an IOMMU translates is
// known only then, and shrinks with each group (decisions/). It outlives every backend it made. Main
// thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "devices/vfio/container.h"
#include "devices/vfio/group.h"
#include "devices/vfio/kernel_backend.h"
#include "devices/vfio/sysfs.h"
#include "devices/vfio/topology.h"

namespace crossbar {

class VfioHost {
 public:
  explicit VfioHost(HostRoots roots = {}) : roots_(std::move(roots)) {}

  // Attaches the device's group if it is not yet, to the first container that takes it, and opens the
  // device. Errors say what to do: no such device, not bound to vfio-pci, no IOMMU, in use, and so on.
  Result<std::unique_ptr<KernelBackend>> OpenDevice(const std::string& address);

  // Where guest memory must not be, for PlatformInfo: what some container does not translate, and what
  // some device's requests do not come through to it with (devices/vfio/topology.h). Ascending.
  Result<std::vector<GuestRange>> Unusable() const;

  const std::vector<std::unique_ptr<VfioContainer>>& containers() const { return containers_; }
  // For KVM's VFIO device (Documentation/virt/kvm/devices/vfio.rst).
  std::vector<int> group_fds() const;

 private:
  struct Group {
    std::unique_ptr<VfioGroup> group;
    VfioContainer* container = nullptr;
  };
  struct Opened {
    HostPciDevice device;
    VfioContainer* container = nullptr;
    std::vector<PciTurn> turns;
  };

  Result<Group*> AttachGroup(unsigned number);
  Result<VfioContainer*> ContainerFor(const VfioGroup& group);
  void NotePeers(Opened opened);

  const HostRoots roots_;
  // Groups leave their containers as they close, so they go first.
  std::vector<std::unique_ptr<VfioContainer>> containers_;
  std::map<unsigned, Group> groups_;
  std::vector<Opened> opened_;
};

}  // namespace crossbar
