// Passthrough: the passed-through devices of one VM: opened before the machine is laid out, connected
// to it after, closed before it ends.
//
// Owned by Vm. Main thread, but for LetGroupGo; faults are injected on the device's watcher thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/locks.h"
#include "base/result.h"
#include "boot/platform_info.h"
#include "devices/bus.h"
#include "devices/passthrough/function.h"
#include "devices/passthrough/zap_notification.h"
#include "devices/pci_firmware.h"
#include "devices/pci_root.h"
#include "devices/pci_root_port.h"
#include "devices/vfio/host.h"
#include "memory/address_space.h"
#include "vmm/device_spec.h"
#include "vmm/kvm_interrupt_router.h"
#include "vmm/watcher_thread.h"

namespace crossbar {

class Passthrough {
 public:
  // What the devices are connected to; all of it outlives this.
  struct Machine {
    int vm_fd = -1;
    uint32_t most_routes = 0;  // KVM_CAP_IRQ_ROUTING
    const PlatformInfo& platform;
    AddressSpace& space;
    PciRoot& pci;
    TrapBus& mmio;
    TrapBus& pio;
  };

  // Opens all devices, so that every group is attached before anything is mapped. Errors name the
  // device.
  static Result<std::unique_ptr<Passthrough>> Open(const std::vector<DeviceSpec>& specs);
  ~Passthrough() { Close(); }

  // Where neither RAM nor BARs may be.
  const std::vector<GuestRange>& unusable() const { return unusable_; }
  // How many buses there are below the root bus. Before Connect.
  uint8_t buses() const;
  // A window of so many bytes has room for all their BARs, wherever it begins. Before Connect.
  uint64_t window_bytes() const;

  // Maps RAM for the devices' DMA and puts them on the root bus or behind their ports. Errors name the
  // device.
  Result<> Connect(const Machine& machine);
  // As firmware does, before each boot.
  Result<> AssignResources();

  // Every device is taken away and closed, and the domains end with their last ones.
  void Close();

  const std::vector<std::shared_ptr<PassthroughFunction>>& functions() const { return functions_; }
  const ZapLog& zaps() const { return zaps_; }

 private:
  struct Opened {
    DeviceSpec spec;
    std::unique_ptr<VfioBackend> backend;
    std::vector<std::byte> rom;
  };

  struct Port {
    std::shared_ptr<PciRootPort> function;
    uint8_t slot = 0;
    uint8_t devices = 0;  // behind it
  };
  // Where a device goes.
  struct Place {
    PciBus& bus;
    PciDevfn devfn;
    uint8_t slot = 0;  // on the root bus, its own or its port's
    const PciRootPort* above = nullptr;
  };

  Passthrough() = default;
  Result<> RegisterGroups(int vm_fd);
  Result<> AddDomains(const Machine& machine) EXCLUDES(domains_mutex_);
  // A group has lost its last device: on whatever thread closed that.
  void LetGroupGo(int group_fd, VfioContainer* container) EXCLUDES(domains_mutex_);
  Result<> ConnectWindows(const Machine& machine);
  // Makes the port where it is new.
  Result<Port*> PortOf(PciRoot& pci, const DeviceSpec& spec);
  Result<Place> PlaceOf(PciRoot& pci, const DeviceSpec& spec);
  Result<> ConnectDevice(const Machine& machine, Opened opened);
  Result<> StartFaults();

  VfioHost host_;
  std::vector<GuestRange> unusable_;
  std::vector<Opened> opened_;  // until Connect
  ZapLog zaps_;

  Fd kvm_vfio_;
  std::unique_ptr<KvmInterruptRouter> interrupts_;
  Mutex domains_mutex_;
  std::map<const VfioContainer*, AddressSpace::DomainHandle> domains_ GUARDED_BY(domains_mutex_);
  Bars::Windows windows_;
  PciRoot* pci_ = nullptr;
  PciWindows layout_;
  std::map<std::string, Port> ports_;
  // One for each device: while it waits for a slow server, the others' news are heard.
  std::vector<std::unique_ptr<WatcherThread>> watchers_;
  struct PlannedFault {
    DeviceSpec::Fault fault;
    std::shared_ptr<PassthroughFunction> function;
    WatcherThread* watcher = nullptr;
    Fd timer;
  };
  std::vector<PlannedFault> faults_;
  std::vector<std::shared_ptr<PassthroughFunction>> functions_;
};

}  // namespace crossbar
