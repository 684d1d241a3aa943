// X86Devices: the emulated devices of the x86 platform, on the buses they answer on.
//
// Owned by Vm; made on the main thread before the vCPUs run, reset on it while they are stopped.
#pragma once

#include <functional>
#include <memory>

#include "base/result.h"
#include "boot/platform_info.h"
#include "devices/acpi_power.h"
#include "devices/boot_marker.h"
#include "devices/bus.h"
#include "devices/debug_exit.h"
#include "devices/pci_access.h"
#include "devices/pci_root.h"
#include "devices/serial.h"
#include "vmm/kvm_irq_line.h"
#include "vmm/stop.h"

namespace crossbar {

class X86Devices {
 public:
  // Everything borrowed outlives this. `on_space` is Serial's.
  X86Devices(int vm_fd, const PlatformInfo& platform, StopSignal& stop, SerialOutput& output,
             std::function<void()> on_space);

  Result<> AttachTo(TrapBus& pio, TrapBus& mmio, const PlatformInfo& platform);

  // Back to power-on values.
  void Reset();

  Serial& serial() { return *serial_; }
  BootMarker& boot_marker() { return *boot_marker_; }
  PciRoot& pci() { return pci_; }

 private:
  KvmIrqLine serial_irq_;
  PciRoot pci_;
  ResetControl reset_control_;
  std::shared_ptr<Serial> serial_;
  std::shared_ptr<DebugExit> debug_exit_;
  std::shared_ptr<BootMarker> boot_marker_;
  std::shared_ptr<SleepControl> sleep_control_;
  std::shared_ptr<SleepStatus> sleep_status_;
  std::shared_ptr<KeyboardReset> keyboard_reset_;
  std::shared_ptr<Cf8Ports> cf8_;
  std::shared_ptr<EcamWindow> ecam_;
};

}  // namespace crossbar
