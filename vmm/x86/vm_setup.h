// What an x86 VM needs between KVM_CREATE_VM and its first vCPU, and a vCPU before it runs.
#pragma once

#include <span>

#include "base/kvm_uapi.h"
#include "base/result.h"

namespace crossbar {

// KVM's own pages (boot/platform_info.h says where) and the in-kernel PICs, IOAPIC and LAPICs.
Result<> PrepareX86Vm(int vm_fd);

// CPUID, and memory types as firmware leaves them.
Result<> PrepareX86Vcpu(int vcpu_fd, std::span<const kvm_cpuid_entry2> cpuid);

}  // namespace crossbar
