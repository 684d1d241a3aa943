// Time from exec to the first KVM_RUN, measured from outside and so the same for every program.
//
// The child gets a seccomp filter before its exec that stops it at KVM_RUN and tells us
// (SECCOMP_RET_USER_NOTIF); it never gets further. The filter costs each of its system calls some
// tens of nanoseconds, whoever it is. Main thread only.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace crossbar::bench {

using Arguments = std::vector<std::string>;  // the program's path first

// In seconds, on the monotonic clock, from right before execve. The child is killed and reaped.
Result<double> TimeToFirstRun(const Arguments& arguments);

// Runs it to its end; its exit status.
Result<int> RunToEnd(const Arguments& arguments);

}  // namespace crossbar::bench
