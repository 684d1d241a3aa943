// One model-specific register of a vCPU. Any thread that may use the vCPU.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace crossbar {

// An MSR that the vCPU does not have, or a value that KVM refuses, is an error.
Result<uint64_t> ReadMsr(int vcpu_fd, uint32_t index);
Result<> WriteMsr(int vcpu_fd, uint32_t index, uint64_t value);

}  // namespace crossbar
