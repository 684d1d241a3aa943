// Child processes: system calls as in base/sys.h. Stateless; any thread.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace crossbar::sys {

// Which of our descriptors becomes which of the child's.
struct InheritedFd {
  int ours = -1;
  int childs = -1;
};

// Starts `program` (a path) with `arguments`, the first of which is its name, in a process group of its
// own, with default signals, nothing on standard input and output, and of our descriptors standard
// error and `inherited`.
Result<pid_t> Spawn(const std::string& program, const std::vector<std::string>& arguments,
                    std::span<const InheritedFd> inherited);

// As many descriptors as may be: the usual limit of 1024 is for select(), and an interrupt vector takes one.
void RaiseDescriptorLimit();

// Readable once the process has ended.
Result<Fd> PidFd(pid_t process);
Result<> Kill(pid_t process, int signal);
// Reaps a child of ours that has ended: true once that is done, false while it runs.
Result<bool> TryReap(pid_t process);

}  // namespace crossbar::sys
