// <linux/kvm.h>, right for C++. Include this and never the header itself.
//
// Linux 6.1's __DECLARE_FLEX_ARRAY puts an empty struct before a trailing array. In C that takes no
// room; in C++ it is a byte, so the arrays move by 4 or 8 and every _IOWR number that holds such a
// struct's size is wrong (KVM_GET_SUPPORTED_CPUID: EINVAL). Linux 6.7 defines it for C++ as below
// (include/uapi/linux/stddef.h).
#pragma once

#include <linux/stddef.h>

#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]

#include <linux/kvm.h>

static_assert(sizeof(kvm_irq_routing) == 8);
#if defined(__x86_64__)
static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msrs) == 8 && sizeof(kvm_msr_list) == 4);
#endif
