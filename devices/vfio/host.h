// VfioHost: the kernel's VFIO as one VM uses it: groups, containers, and the devices opened from them.
//
// Owned by Vm, which opens all devices before it lays out guest memory: what an IOMMU translates is
// known only then, and shrinks with each group (decisions/009, 011). It outlives every backend it made. Devices
// are opened on the main thread; they may close on any.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/locks.h"
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
  Result<std::unique_ptr<KernelBackend>> OpenDevice(const std::string& address) EXCLUDES(mutex_);

  // A group is given back to the host as its last device closes: no driver of the host could have
  // that otherwise. `handler` runs before, on the thread that closes the device: the group's file, and
  // the container if no other group is left in it, else null.
  using LeaveHandler = std::function<void(int group_fd, VfioContainer* container)>;
  void OnLeave(LeaveHandler handler) EXCLUDES(mutex_);

  // Where guest memory must not be, for PlatformInfo: what some container does not translate, and what
  // some device's requests do not come through to it with (devices/vfio/topology.h). Ascending.
  Result<std::vector<GuestRange>> Unusable() const;

  const std::vector<std::unique_ptr<VfioContainer>>& containers() const { return containers_; }
  // For KVM's VFIO device (Documentation/virt/kvm/devices/vfio.rst).
  std::vector<int> group_fds() const EXCLUDES(mutex_);

 private:
  struct Group {
    std::weak_ptr<const VfioGroup> group;  // its devices own it
    VfioContainer* container = nullptr;
  };
  struct Attached {
    std::shared_ptr<const VfioGroup> group;
    VfioContainer* container = nullptr;
  };
  struct Opened {
    HostPciDevice device;
    VfioContainer* container = nullptr;
    std::vector<PciTurn> turns;
  };

  Result<Attached> AttachGroup(unsigned number) EXCLUDES(mutex_);
  void Leave(const VfioGroup& group) EXCLUDES(mutex_);
  Result<VfioContainer*> ContainerFor(const VfioGroup& group);
  void NotePeers(Opened opened);

  const HostRoots roots_;
  std::vector<std::unique_ptr<VfioContainer>> containers_;  // constant once all devices are open
  std::vector<Opened> opened_;                              // so is this
  mutable Mutex mutex_;
  std::map<unsigned, Group> groups_ GUARDED_BY(mutex_);
  LeaveHandler on_leave_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
