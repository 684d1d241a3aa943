// Vm: one virtual machine, from its options to its end.
//
// Create makes everything in the order that ARCHITECTURE.md lists; Run starts the vCPU threads and
// serves the console, signals and reboots on the calling (main) thread until the guest has ended.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "boot/image_file.h"
#include "boot/loader.h"
#include "boot/platform_info.h"
#include "memory/address_space.h"
#include "memory/guest_ram.h"
#include "memory/kvm_memslot_table.h"
#include "vmm/console.h"
#include "vmm/event_loop.h"
#include "vmm/kvm.h"
#include "vmm/options.h"
#include "vmm/passthrough.h"
#include "vmm/phases.h"
#include "vmm/stop.h"
#include "vmm/vcpu.h"
#include "vmm/x86/cpuid.h"
#include "vmm/x86/devices.h"
#include "vmm/x86/power_on_state.h"

namespace crossbar {

class Vm {
 public:
  // `options` and `phases` are borrowed and outlive the VM.
  static Result<std::unique_ptr<Vm>> Create(const RunOptions& options, StartupPhases& phases);
  ~Vm();

  // Once. How the VM ended; vCPUs are stopped by then.
  Result<StopRequest> Run();

  // For the report; after Run.
  const PlatformInfo& platform() const { return platform_; }
  const GuestRam& ram() const { return ram_; }
  const KvmMemslotTable& memslots() const { return memslots_; }
  const std::vector<std::unique_ptr<Vcpu>>& vcpus() const { return vcpus_; }
  const LoadedGuest& loaded() const { return loaded_; }
  BootMarker& boot_marker() { return devices_->boot_marker(); }
  const AddressSpace& address_space() const { return address_space_; }
  unsigned reboots() const { return reboots_; }
  // Null where no device is passed through.
  const Passthrough* passthrough() const { return passthrough_.get(); }

  // For what is placed in the machine from outside (tests): before Run, or with its own locking.
  AddressSpace& address_space() { return address_space_; }
  TrapBus& mmio() { return mmio_; }
  PciRoot& pci() { return devices_->pci(); }

 private:
  struct Images {
    static Result<Images> Open(const RunOptions& options);
    // What the options and the files ask for, without what the machine adds.
    LoadRequest Request(const RunOptions& options) const;
    std::unique_ptr<FdImage> kernel;
    std::unique_ptr<FdImage> initrd;  // may be absent
    std::vector<std::unique_ptr<FdImage>> modules;
  };
  struct Parts;
  explicit Vm(Parts parts);

  Result<> MapRam();
  Result<> MakeDevices();
  Result<> ConnectPassthrough();
  Result<> MakeVcpus();
  // Tables, device tree, kernel and boot registers; `fresh` where RAM was never written.
  Result<> LoadAndEnter(bool fresh);
  Result<> WatchSignals();
  Result<> HandleSignal();
  void PrintPassthrough();
  void CutPeersIfUnsafe();
  Result<> Reboot();
  Result<> StartVcpus();
  void StopVcpus();

  const RunOptions& options_;
  StartupPhases& phases_;

  // In the order of making, so that each is gone before what it stands on.
  Kvm kvm_;
  Fd vm_fd_;
  StopSignal stop_;
  EventLoop loop_;
  GuestCpuid cpuid_;
  PlatformInfo platform_;
  GuestRam ram_;
  KvmMemslotTable memslots_;
  AddressSpace address_space_;
  AddressSpace::Mapping ram_mapping_;
  TrapBus pio_;
  TrapBus mmio_;
  std::unique_ptr<Console> console_;
  std::unique_ptr<X86Devices> devices_;
  std::unique_ptr<Passthrough> passthrough_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;

  Images images_;
  LoadedGuest loaded_;
  std::optional<PowerOnState> power_on_;
  Fd signals_;
  unsigned reboots_ = 0;
  bool ran_ = false;
};

}  // namespace crossbar
