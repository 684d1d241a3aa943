// ZapNotification: why a function's BARs are zapped or mapped again; what each cause asks for is the
// table below. ZapLog: what happened, counted by cause, for the report, SIGUSR1 and the tests.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "base/locks.h"

namespace crossbar {

enum class ZapCause : uint8_t {
  kDecodeOff,      // COMMAND.MSE 1 -> 0
  kDecodeOn,       // COMMAND.MSE 0 -> 1
  kBarMoved,       // a BAR register was rewritten
  kPowerDown,      // PMCSR D0 -> D3hot
  kPowerUp,        // PMCSR D3hot -> D0
  kFunctionReset,  // FLR, of PCIe or AF
  kBusReset,       // secondary bus reset of the port above
  kPortChange,     // the port above forwards something else: its windows, its decode, bus mastering
  kMachineReset,   // the guest reboots
  kWantedBack,     // REQ: the host wants the device back
  kDeviceError,    // ERR: the device had an error that is not correctable
  kDeviceGone,     // its server hung up, or its memory vanished under the guest
  kClosing,        // the VM ends, or the device is unplugged
};
inline constexpr size_t kZapCauses = 13;

const char* ZapCauseName(ZapCause cause);

// What a cause asks of PassthroughFunction::Transition.
struct ZapPolicy {
  bool interrupts_decode = false;  // all BARs are zapped before the hardware step
  bool resets = false;             // interrupts off before it, reset values after it
  bool stays_down = false;         // nothing is mapped afterwards, ever; it is no initiator any more either
};
ZapPolicy PolicyOf(ZapCause cause);

struct ZapNotification {
  using Clock = std::chrono::steady_clock;
  std::string device;
  ZapCause cause = ZapCause::kDecodeOff;
  bool injected = false;      // a fault plan imitates the cause
  unsigned pieces = 0;        // BAR mappings that were taken away
  Clock::time_point noticed;  // the rest is as late or later, in this order
  Clock::time_point dma_out;
  Clock::time_point slots_out;
  Clock::time_point hardware_done;
};

// Any thread.
class ZapLog {
 public:
  static constexpr size_t kKept = 64;  // the last so many are kept whole

  void Add(ZapNotification notification) EXCLUDES(mutex_);
  uint64_t count(ZapCause cause) const EXCLUDES(mutex_);
  std::vector<ZapNotification> Recent() const EXCLUDES(mutex_);

 private:
  mutable Mutex mutex_;
  std::array<uint64_t, kZapCauses> counts_ GUARDED_BY(mutex_) = {};
  std::deque<ZapNotification> recent_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
