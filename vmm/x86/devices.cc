#include "vmm/x86/devices.h"

#include <utility>

#include "base/check.h"

namespace crossbar {
namespace {

constexpr uint16_t kCf8Port = 0xcf8;
constexpr uint16_t kKeyboardPort = 0x64;

std::function<void()> RebootBy(StopSignal& stop, const char* how) {
  return [&stop, how] {
    stop.Request(StopRequest::Reason::kReboot, ExitStatus::kPowerOff,
                 fmt::format("the guest reset the machine by {}", how));
  };
}

}  // namespace

X86Devices::X86Devices(int vm_fd, const PlatformInfo& platform, StopSignal& stop,
                       SerialOutput& output, std::function<void()> on_space)
    : serial_irq_(vm_fd, platform.serial.gsi),
      pci_(platform.pci.first_bus, platform.pci.last_bus),
      reset_control_(RebootBy(stop, "its reset control register")),
      serial_(std::make_shared<Serial>(serial_irq_, output, std::move(on_space))),
      debug_exit_(std::make_shared<DebugExit>([&stop](int status) {
        stop.Request({StopRequest::Reason::kDebugExit, status,
                      fmt::format("the guest wrote {} to the debug-exit port", status >> 1)});
      })),
      boot_marker_(std::make_shared<BootMarker>()),
      sleep_control_(std::make_shared<SleepControl>(
          platform.power.s5_sleep_type,
          [&stop] {
            stop.Request(StopRequest::Reason::kPowerOff, ExitStatus::kPowerOff,
                         "the guest powered off");
          })),
      sleep_status_(std::make_shared<SleepStatus>()),
      keyboard_reset_(std::make_shared<KeyboardReset>(RebootBy(stop, "the keyboard controller"))),
      cf8_(std::make_shared<Cf8Ports>(pci_, reset_control_)),
      ecam_(std::make_shared<EcamWindow>(pci_)) {
  // Its ports are forwarded by Cf8Ports, so the description must agree.
  CHECK(platform.power.reset_port == kCf8Port + 1);
  CHECK(platform.pci.ecam.size == ecam_->size());
}

Result<> X86Devices::AttachTo(TrapBus& pio, TrapBus& mmio, const PlatformInfo& platform) {
  TRY(pci_.root_bus().Add(PciDevfn(0, 0), std::make_shared<HostBridge>()));
  TRY(pio.Add(platform.serial.port, Serial::kPorts, serial_));
  TRY(pio.Add(platform.debug_exit_port, DebugExit::kPorts, debug_exit_));
  TRY(pio.Add(platform.boot_marker_port, BootMarker::kPorts, boot_marker_));
  TRY(pio.Add(platform.power.sleep_control_port, SleepControl::kPorts, sleep_control_));
  TRY(pio.Add(platform.power.sleep_status_port, SleepStatus::kPorts, sleep_status_));
  TRY(pio.Add(kKeyboardPort, KeyboardReset::kPorts, keyboard_reset_));
  TRY(pio.Add(kCf8Port, Cf8Ports::kPorts, cf8_));
  TRY(mmio.Add(platform.pci.ecam.start.value(), ecam_->size(), ecam_));
  return {};
}

void X86Devices::Reset() {
  pci_.Reset();
  cf8_->Reset();
  reset_control_.Reset();
  sleep_control_->Reset();
  serial_->Reset();
}

}  // namespace crossbar
