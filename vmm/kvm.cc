#include "vmm/kvm.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <utility>

#include "base/kvm_uapi.h"
#include "base/sys.h"

namespace crossbar {
namespace {

constexpr std::array<std::pair<unsigned long, const char*>, 6> kNeeded = {{
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
}};

Error Explain(Error error) {
  switch (error.code()) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return std::move(error).WithHint(
          "this kernel offers no KVM: enable virtualization in the firmware and load kvm_intel or "
          "kvm_amd (in a VM, enable nested virtualization)");
    case EACCES:
    case EPERM:
      return std::move(error).WithHint(
          "join the group that owns /dev/kvm (sudo usermod -aG kvm $USER) and log in again");
    default:
      return error;
  }
}

}  // namespace

Result<Kvm> Kvm::Open(const char* path) {
  Result<Fd> fd = sys::Open(path, O_RDWR);
  if (!fd) return std::unexpected(Explain(std::move(fd).error()));
  Kvm kvm(*std::move(fd));
  const int version = TRY(sys::Ioctl(kvm.fd(), SYS_REQUEST(KVM_GET_API_VERSION)));
  if (version != KVM_API_VERSION)
    return Fail("{} speaks KVM API version {}, not {}", path, version, KVM_API_VERSION);
  for (const auto& [capability, name] : kNeeded) {
    if (kvm.Capability(capability) == 0)
      return Fail("this kernel's KVM lacks {}; use Linux 6.1 or later", name);
  }
  const int max_vcpus = kvm.Capability(KVM_CAP_MAX_VCPUS);
  kvm.max_vcpus_ = max_vcpus > 0 ? static_cast<unsigned>(max_vcpus) : 4;
  kvm.vcpu_mmap_size_ =
      static_cast<unsigned>(TRY(sys::Ioctl(kvm.fd(), SYS_REQUEST(KVM_GET_VCPU_MMAP_SIZE))));
  return kvm;
}

Result<Fd> Kvm::CreateVm() const {
  return Fd(TRY(sys::Ioctl(fd(), SYS_REQUEST(KVM_CREATE_VM))));
}

int Kvm::Capability(unsigned long capability) const {
  return std::max(0, sys::TryIoctl(fd(), SYS_REQUEST(KVM_CHECK_EXTENSION), capability));
}

}  // namespace crossbar
