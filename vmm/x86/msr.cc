#include "vmm/x86/msr.h"

#include <array>
#include <cstddef>

#include "base/kvm_uapi.h"
#include "base/sys.h"

namespace crossbar {
namespace {

// kvm_msrs ends in a flexible array: this is one with room for one.
struct OneMsr {
  explicit OneMsr(uint32_t index) {
    header()->nmsrs = 1;
    entry()->index = index;
  }
  kvm_msrs* header() { return reinterpret_cast<kvm_msrs*>(bytes.data()); }
  kvm_msr_entry* entry() { return header()->entries; }
  alignas(kvm_msrs) std::array<std::byte, sizeof(kvm_msrs) + sizeof(kvm_msr_entry)> bytes{};
};

// Both ioctls return how many they did.
Result<> Transfer(int vcpu_fd, sys::Request request, OneMsr& msr) {
  if (TRY(sys::Ioctl(vcpu_fd, request, msr.header())) == 1) return {};
  return Fail("{}: KVM refuses MSR {:#x}", request.name, uint32_t{msr.entry()->index});
}

}  // namespace

Result<uint64_t> ReadMsr(int vcpu_fd, uint32_t index) {
  OneMsr msr(index);
  TRY(Transfer(vcpu_fd, SYS_REQUEST(KVM_GET_MSRS), msr));
  return msr.entry()->data;
}

Result<> WriteMsr(int vcpu_fd, uint32_t index, uint64_t value) {
  OneMsr msr(index);
  msr.entry()->data = value;
  return Transfer(vcpu_fd, SYS_REQUEST(KVM_SET_MSRS), msr);
}

}  // namespace crossbar
