// Kvm: /dev/kvm, and the VM descriptor made from it. Thin owners of descriptors; any thread.
#pragma once

#include "base/fd.h"
#include "base/result.h"

namespace crossbar {

class Kvm {
 public:
  // Opens `path` and checks the API version and the capabilities that Crossbar cannot do without.
  // The error says what to do where the device is missing or not ours to open.
  static Result<Kvm> Open(const char* path = "/dev/kvm");

  Result<Fd> CreateVm() const;
  // KVM_CHECK_EXTENSION of the system: 0 where it is not offered.
  int Capability(unsigned long capability) const;

  int fd() const { return fd_.get(); }
  unsigned max_vcpus() const { return max_vcpus_; }
  unsigned vcpu_mmap_size() const { return vcpu_mmap_size_; }

 private:
  explicit Kvm(Fd fd) : fd_(std::move(fd)) {}

  Fd fd_;
  unsigned max_vcpus_ = 0;
  unsigned vcpu_mmap_size_ = 0;
};

}  // namespace crossbar
