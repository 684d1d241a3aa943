// Failpoints: makes the n-th system call of a name fail, or wait, on purpose.
//
// Every system call that can fail passes base/sys.h and asks here under its own name (for an ioctl
// that is the request, "KVM_SET_USER_MEMORY_REGION"). While nothing is armed the cost is one
// relaxed load of a bool. Process-wide; any thread; armed by tests and by --failpoint.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace crossbar::failpoints {

namespace internal {
extern std::atomic<bool> g_active;
int HitSlow(std::string_view name, bool may_skip);
}  // namespace internal

// Called by base/sys.h before each call: 0 to go on, or the errno to fail with.
inline int Hit(std::string_view name) {
  if (!internal::g_active.load(std::memory_order_relaxed)) [[likely]] return 0;
  return internal::HitSlow(name, /*may_skip=*/false);
}

// As Hit, for an ioctl: kSkip means that the call is left out and has succeeded.
inline constexpr int kSkip = -1;
inline int HitIoctl(std::string_view name) {
  if (!internal::g_active.load(std::memory_order_relaxed)) [[likely]] return 0;
  return internal::HitSlow(name, /*may_skip=*/true);
}

// Arms one rule, "NAME[#N]=ACTION": from the N-th call on (default: every call), ACTION is an errno
// name or number (EIO, 5), "ERRNO*COUNT" to fail COUNT calls only, or "delay(MICROSECONDS)". NAME
// may be "*". "NAME#3=EIO*1" fails exactly the third call. "skip" leaves an ioctl out and calls it a
// success: what a forgotten step would do, for tests that must notice it.
Result<> Arm(std::string_view rule);
// Whether Arm would take it.
Result<> Check(std::string_view rule);

// Counts calls by name without failing any, for sweeps that then fail each one in turn.
void StartCensus();
std::map<std::string, uint64_t, std::less<>> Census();

// How often armed rules fired since the last Reset.
uint64_t Fired();
// The rules that never did, each with how many calls they matched: 0 where the name is no call's.
struct IdleRule {
  std::string text;
  uint64_t matched;
};
std::vector<IdleRule> IdleRules();

// Disarms everything and clears the counts.
void Reset();

}  // namespace crossbar::failpoints
