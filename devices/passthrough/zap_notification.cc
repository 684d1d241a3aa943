#include "devices/passthrough/zap_notification.h"

#include <utility>

namespace crossbar {

const char* ZapCauseName(ZapCause cause) {
  switch (cause) {
    case ZapCause::kDecodeOff: return "decode-off";
    case ZapCause::kDecodeOn: return "decode-on";
    case ZapCause::kBarMoved: return "bar-moved";
    case ZapCause::kPowerDown: return "power-down";
    case ZapCause::kPowerUp: return "power-up";
    case ZapCause::kFunctionReset: return "function-reset";
    case ZapCause::kBusReset: return "bus-reset";
    case ZapCause::kPortChange: return "port-change";
    case ZapCause::kMachineReset: return "machine-reset";
    case ZapCause::kWantedBack: return "wanted-back";
    case ZapCause::kDeviceError: return "device-error";
    case ZapCause::kDeviceGone: return "device-gone";
    case ZapCause::kClosing: return "closing";
  }
  return "unknown";
}

ZapPolicy PolicyOf(ZapCause cause) {
  switch (cause) {
    case ZapCause::kDecodeOn:
    case ZapCause::kPowerUp:
    case ZapCause::kBarMoved:
    case ZapCause::kPortChange: return {};  // BARs that are to be elsewhere or nowhere leave by themselves
    case ZapCause::kDecodeOff:
    case ZapCause::kPowerDown: return {.interrupts_decode = true};
    case ZapCause::kFunctionReset:
    case ZapCause::kBusReset:
    case ZapCause::kMachineReset: return {.interrupts_decode = true, .resets = true};
    case ZapCause::kWantedBack:
    case ZapCause::kDeviceError:
    case ZapCause::kDeviceGone:
    case ZapCause::kClosing: break;
  }
  return {.interrupts_decode = true, .stays_down = true};
}

void ZapLog::Add(ZapNotification notification) {
  MutexLock lock(mutex_);
  ++counts_[static_cast<size_t>(notification.cause)];
  recent_.push_back(std::move(notification));
  if (recent_.size() > kKept) recent_.pop_front();
}

uint64_t ZapLog::count(ZapCause cause) const {
  MutexLock lock(mutex_);
  return counts_[static_cast<size_t>(cause)];
}

std::vector<ZapNotification> ZapLog::Recent() const {
  MutexLock lock(mutex_);
  return {recent_.begin(), recent_.end()};
}

}  // namespace crossbar
