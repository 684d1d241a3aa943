#include "vmm/stop.h"

#include <sys/eventfd.h>

#include "base/check.h"
#include "base/sys.h"

namespace crossbar {
namespace {

// A pending request gives way to one of a higher rank.
int Rank(StopRequest::Reason reason) {
  switch (reason) {
    case StopRequest::Reason::kUnsafe: return 2;
    case StopRequest::Reason::kHostError:
    case StopRequest::Reason::kOutside: return 1;
    case StopRequest::Reason::kPowerOff:
    case StopRequest::Reason::kDebugExit:
    case StopRequest::Reason::kReboot:
    case StopRequest::Reason::kGuestCrash: break;
  }
  return 0;
}

}  // namespace

const char* ReasonName(StopRequest::Reason reason) {
  switch (reason) {
    case StopRequest::Reason::kPowerOff: return "power-off";
    case StopRequest::Reason::kDebugExit: return "debug-exit";
    case StopRequest::Reason::kReboot: return "reboot";
    case StopRequest::Reason::kGuestCrash: return "guest-crash";
    case StopRequest::Reason::kHostError: return "host-error";
    case StopRequest::Reason::kUnsafe: return "unsafe";
    case StopRequest::Reason::kOutside: return "stopped";
  }
  return "unknown";
}

Result<StopSignal> StopSignal::Create() {
  return StopSignal(TRY(sys::EventFd(0, EFD_NONBLOCK)));
}

void StopSignal::Request(StopRequest request) {
  MutexLock lock(mutex_);
  if (request_) {
    if (Rank(request.reason) > Rank(request_->reason)) request_ = std::move(request);
    return;
  }
  request_ = std::move(request);
  requested_.store(true, std::memory_order_release);
  // Past the door for system calls: with its counter at 0 this cannot fail.
  CHECK(::eventfd_write(event_.get(), 1) == 0);
}

void StopSignal::Request(StopRequest::Reason reason, ExitStatus status, std::string detail) {
  Request({reason, static_cast<int>(status), std::move(detail)});
}

bool StopSignal::unsafe() {
  MutexLock lock(mutex_);
  return request_ && request_->reason == StopRequest::Reason::kUnsafe;
}

StopRequest StopSignal::Take() {
  MutexLock lock(mutex_);
  CHECK(request_.has_value());
  eventfd_t count = 0;
  CHECK(::eventfd_read(event_.get(), &count) == 0);
  StopRequest request = *std::move(request_);
  request_.reset();
  requested_.store(false, std::memory_order_release);
  return request;
}

}  // namespace crossbar
