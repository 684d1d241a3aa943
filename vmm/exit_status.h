// The process's exit status. Documented in README.md and `crossbar run --help`.
//
// A guest that ends itself through the debug-exit port chooses the status: (value << 1 | 1), always
// odd. All of Crossbar's own are even.
#pragma once

namespace crossbar {

enum class ExitStatus : int {
  kPowerOff = 0,    // the guest powered itself off
  kUsage = 2,       // the command line or config file is wrong
  kHostError = 4,   // the host could not do what was asked
  kGuestCrash = 6,  // triple fault, or an instruction KVM cannot emulate
  kStopped = 8,     // SIGINT, SIGTERM, SIGQUIT, SIGHUP or Ctrl-A x
  kUnsafe = 10,     // what a peer or the guest reaches could not be taken away (G5)
};

}  // namespace crossbar
