#include "vmm/kvm.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <sstream>
#include <string>
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

// From /etc/group itself: a static program has no getgrgid that is sure to work. The number where there
// is no name.
std::string GroupName(gid_t id) {
  std::string number = std::to_string(id);
  std::istringstream lines(sys::ReadFile("/etc/group").value_or(""));
  for (std::string line; std::getline(lines, line);) {
    // NAME:PASSWORD:ID:MEMBERS
    const size_t name_end = line.find(':');
    const size_t id_start = line.find(':', name_end + 1);
    if (name_end != std::string::npos && id_start != std::string::npos &&
        line.compare(id_start + 1, line.find(':', id_start + 1) - id_start - 1, number) == 0)
      return line.substr(0, name_end);
  }
  return number;
}

// By whom the node may be opened, apart from root, and so what to do.
std::string HowToGetIn(const char* path) {
  const Result<struct stat> node = sys::Stat(path);
  if (!node || node->st_gid == 0 || (node->st_mode & (S_IRGRP | S_IWGRP)) != (S_IRGRP | S_IWGRP))
    return fmt::format("run as root, or give yourself access: sudo setfacl -m u:$USER:rw {}", path);
  const std::string group = GroupName(node->st_gid);
  return fmt::format("join the group {} that owns it (sudo usermod -aG {} $USER) and log in again",
                     group, group);
}

Error Explain(Error error, const char* path) {
  switch (error.code()) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return std::move(error).WithHint(
          "this kernel offers no KVM: enable virtualization in the firmware and load kvm_intel or "
          "kvm_amd (in a VM, enable nested virtualization)");
    case EACCES:
    case EPERM:
      return std::move(error).WithHint(HowToGetIn(path));
    default:
      return error;
  }
}

}  // namespace

Result<Kvm> Kvm::Open(const char* path) {
  Result<Fd> fd = sys::Open(path, O_RDWR);
  if (!fd) return std::unexpected(Explain(std::move(fd).error(), path));
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
