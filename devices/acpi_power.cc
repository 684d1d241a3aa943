#include "devices/acpi_power.h"

#include <utility>

namespace crossbar {
namespace {

constexpr uint64_t kSleepEnable = 1 << 5;
constexpr unsigned kSleepTypeShift = 2;
constexpr uint64_t kSleepTypeMask = 7;

constexpr uint8_t kSystemReset = 1 << 1;
constexpr uint8_t kResetCpu = 1 << 2;
constexpr uint8_t kFullReset = 1 << 3;

constexpr uint8_t kPulseResetLine = 0xfe;
// All ones but for "input buffer full": a driver that probes finds no controller, because its
// output never runs dry, and a guest that waits until it may send the reset command waits no time.
constexpr uint8_t kKeyboardStatus = 0xfd;

}  // namespace

SleepControl::SleepControl(uint8_t s5_sleep_type, std::function<void()> on_power_off)
    : s5_sleep_type_(s5_sleep_type), on_power_off_(std::move(on_power_off)) {}

uint64_t SleepControl::Read(uint64_t, unsigned) {
  return static_cast<uint64_t>(sleep_type_) << kSleepTypeShift;
}

void SleepControl::Write(uint64_t, unsigned, uint64_t value) {
  const auto type = static_cast<uint8_t>((value >> kSleepTypeShift) & kSleepTypeMask);
  sleep_type_ = type;
  if ((value & kSleepEnable) == 0) return;
  if (type == s5_sleep_type_) {
    on_power_off_();
  } else {
    LogGuest(limit_, "guest asked for sleep type {}; only S5 (type {}) exists", type,
             s5_sleep_type_);
  }
}

ResetControl::ResetControl(std::function<void()> on_reset) : on_reset_(std::move(on_reset)) {}

void ResetControl::Write(uint8_t value) {
  value_ = value & (kSystemReset | kFullReset);
  if (value & kResetCpu) on_reset_();
}

KeyboardReset::KeyboardReset(std::function<void()> on_reset) : on_reset_(std::move(on_reset)) {}

uint64_t KeyboardReset::Read(uint64_t, unsigned) {
  return kKeyboardStatus;
}

void KeyboardReset::Write(uint64_t, unsigned, uint64_t value) {
  if (static_cast<uint8_t>(value) == kPulseResetLine) on_reset_();
}

}  // namespace crossbar
