#include "bench/exit_timer.h"

#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "base/kvm_uapi.h"

namespace crossbar::bench {
namespace {

struct Timer {
  std::span<uint64_t> ticks;
  size_t count = 0;
  uint64_t last = 0;  // when KVM_RUN last returned; 0: not yet
};
constinit Timer timer;

// Waits for what comes before it in the program, and lets nothing after it begin.
inline uint64_t Ticks() {
  _mm_lfence();
  const uint64_t ticks = __rdtsc();
  _mm_lfence();
  return ticks;
}

int TimedRun(int fd, unsigned long argument) {
  const uint64_t now = Ticks();
  if (timer.last != 0 && timer.count < timer.ticks.size())
    timer.ticks[timer.count++] = now - timer.last;
  const long result = ::syscall(SYS_ioctl, fd, KVM_RUN, argument);
  timer.last = Ticks();
  return static_cast<int>(result);
}

}  // namespace

void StartExitTimer(std::span<uint64_t> ticks) {
  timer = {ticks};
}

size_t StopExitTimer() {
  const size_t count = timer.count;
  timer = {};
  return count;
}

double TicksPerSecond() {
  static const double rate = [] {
    const auto start = std::chrono::steady_clock::now();
    const uint64_t from = Ticks();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const auto end = std::chrono::steady_clock::now();
    return static_cast<double>(Ticks() - from) / std::chrono::duration<double>(end - start).count();
  }();
  return rate;
}

uint64_t TimerFloor() {
  std::array<uint64_t, 1001> floors;
  for (uint64_t& floor : floors) {
    const uint64_t from = Ticks();
    floor = Ticks() - from;
  }
  std::ranges::nth_element(floors, floors.begin() + floors.size() / 2);
  return floors[floors.size() / 2];
}

}  // namespace crossbar::bench

// In front of libc's, for the whole program.
extern "C" int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  const unsigned long argument = va_arg(arguments, unsigned long);
  va_end(arguments);
  if (request == KVM_RUN) return crossbar::bench::TimedRun(fd, argument);
  return static_cast<int>(::syscall(SYS_ioctl, fd, request, argument));
}
