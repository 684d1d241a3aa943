// StopSignal: how a vCPU, a device or a signal tells the main thread that the VM is to stop or to
// start over. Until it is taken the first request wins, except that what the host or a person asks
// for outranks what the guest asks for (a guest that resets without end can still be stopped), and
// that memory which is not safe to give back outranks all. Any thread.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "base/fd.h"
#include "base/locks.h"
#include "base/result.h"
#include "vmm/exit_status.h"

namespace crossbar {

struct StopRequest {
  enum class Reason { kPowerOff, kDebugExit, kReboot, kGuestCrash, kHostError, kUnsafe, kOutside };
  Reason reason = Reason::kPowerOff;
  int status = 0;      // the process's exit status; unused for a reboot
  std::string detail;  // the facts, for a person
};

const char* ReasonName(StopRequest::Reason reason);

class StopSignal {
 public:
  static Result<StopSignal> Create();
  StopSignal(StopSignal&& other) noexcept : event_(std::move(other.event_)) {}

  void Request(StopRequest request);
  void Request(StopRequest::Reason reason, ExitStatus status, std::string detail);

  bool requested() const { return requested_.load(std::memory_order_acquire); }
  // Whether the pending request is that memory is not safe to give back.
  bool unsafe() EXCLUDES(mutex_);
  // Readable while a request is pending; for epoll.
  const Fd& event() const { return event_; }
  // Takes the pending request; vCPUs must have been stopped before, or they would run on.
  StopRequest Take();

 private:
  explicit StopSignal(Fd event) : event_(std::move(event)) {}

  Fd event_;
  std::atomic<bool> requested_ = false;
  Mutex mutex_;
  std::optional<StopRequest> request_ GUARDED_BY(mutex_);
};

}  // namespace crossbar
