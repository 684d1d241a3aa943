// Times what happens between two KVM_RUNs: the program that holds this has an ioctl() of its own,
// which every KVM_RUN in it passes, Crossbar's and a bare loop's alike. x86 only.
//
// A figure is from the return of one KVM_RUN's system call to right before the next one's, in TSC
// ticks. The system call itself is in neither; the two TSC reads (tens of ticks) are in both.
// Calling thread only, one vCPU at a time.
#pragma once

#include <cstdint>
#include <span>

namespace crossbar::bench {

// From now on each gap between two KVM_RUNs goes to the next place in `ticks`; those that find no
// room are dropped. The first KVM_RUN ends no gap.
void StartExitTimer(std::span<uint64_t> ticks);
// How many gaps were recorded.
size_t StopExitTimer();

// The TSC's rate, measured once against the monotonic clock.
double TicksPerSecond();
// The median of two readings with nothing between them, in ticks: how much of a figure is the
// clock.
uint64_t TimerFloor();

}  // namespace crossbar::bench
