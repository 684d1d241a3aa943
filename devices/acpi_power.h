// The guest's ways to switch off and to reboot: the ACPI sleep registers, the reset control
// register (0xcf9) and the keyboard controller's reset line (0x64).
//
// Owned by Vm and the port bus; vCPU threads read and write. Callbacks run on the vCPU's thread,
// with no lock held, and may be called again before the VM has stopped.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "base/log.h"
#include "devices/bus.h"

namespace crossbar {

// Sleep Control Register (ACPI 6.5, 4.8.3.7): SLP_TYP in bits 2-4, SLP_EN (write only) in bit 5.
class SleepControl final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 1;

  // `s5_sleep_type` is SLP_TYP of \_S5. Other sleep states do not exist: asking for one is logged.
  SleepControl(uint8_t s5_sleep_type, std::function<void()> on_power_off);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;
  void Reset() { sleep_type_ = 0; }

 private:
  const uint8_t s5_sleep_type_;
  const std::function<void()> on_power_off_;
  std::atomic<uint8_t> sleep_type_ = 0;
  RateLimit limit_;
};

// Sleep Status Register (ACPI 6.5, 4.8.3.7). WAK_STS (bit 7) is set on waking; since S5 is the only
// sleep state and ends the VM, it never is, and writing 1 to clear it clears nothing.
class SleepStatus final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 1;

  uint64_t Read(uint64_t, unsigned) override { return 0; }
  void Write(uint64_t, unsigned, uint64_t) override {}
};

// The reset control register of Intel's I/O hubs (ICH10 data sheet, 13.7.5). Not on a bus by
// itself: port 0xcf9 lies among those of Cf8Ports, which forwards to it (devices/pci_access.h).
class ResetControl {
 public:
  explicit ResetControl(std::function<void()> on_reset);

  uint8_t Read() const { return value_; }
  // Bit 2 resets, and never stays set, so that each write of it is the edge that counts. Bit 1,
  // hard or soft, makes no difference: a reset of the CPU alone needs firmware.
  void Write(uint8_t value);
  void Reset() { value_ = 0; }

 private:
  const std::function<void()> on_reset_;
  std::atomic<uint8_t> value_ = 0;
};

// Port 0x64 of a keyboard controller that is not there, but for its reset line.
class KeyboardReset final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 1;

  explicit KeyboardReset(std::function<void()> on_reset);

  uint64_t Read(uint64_t offset, unsigned size) override;
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

 private:
  const std::function<void()> on_reset_;
};

}  // namespace crossbar
