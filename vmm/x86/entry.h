// Puts a boot vCPU into the state that a boot protocol asks for (boot/entry_state.h).
#pragma once

#include <string>

#include "base/result.h"
#include "boot/entry_state.h"

namespace crossbar {

// Sets the general and the segment and control registers of `vcpu_fd`, which must not be running.
Result<> SetEntryState(int vcpu_fd, const EntryState& entry);

// "rip 0x... rsp 0x... rflags 0x...", for messages; the vCPU must not be running.
std::string DescribeRegisters(int vcpu_fd);

}  // namespace crossbar
