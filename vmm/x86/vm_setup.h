// What an x86 VM needs between KVM_CREATE_VM and its first vCPU.
#pragma once

#include "base/result.h"

namespace crossbar {

// KVM's own pages (boot/platform_info.h says where) and the in-kernel PICs, IOAPIC and LAPICs.
Result<> PrepareX86Vm(int vm_fd);

}  // namespace crossbar
