#include "devices/vfio/group.h"

#include <fcntl.h>
#include <linux/vfio.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <vector>

#include "base/sys.h"

namespace crossbar {
namespace {

// pcieport and pci-stub keep a bridge or a spare device without harm to others (vfio.c,
// vfio_dev_driver_allowed).
bool Blocks(const HostPciDevice& device) {
  static constexpr std::array<std::string_view, 5> kHarmless = {"", "vfio-pci", "pcieport",
                                                                "pci-stub", "shpchp"};
  return std::ranges::find(kHarmless, device.driver) == kHarmless.end();
}

Error NotViable(const HostRoots& roots, unsigned number) {
  std::vector<HostPciDevice> blockers;
  if (auto devices = DevicesOfGroup(roots, number))
    std::ranges::copy_if(*devices, std::back_inserter(blockers), Blocks);
  if (blockers.empty())
    return Error::Of("IOMMU group {} is not viable, and no driver of the host has a part of it", number)
        .WithHint("see what the kernel says (dmesg)");
  std::string list;
  for (const HostPciDevice& device : blockers)
    list += fmt::format("{}{} is bound to {}", list.empty() ? "" : ", ", device.address, device.driver);
  return Error::Of("IOMMU group {} goes to one user as a whole, and drivers of the host have parts of "
                   "it: {}", number, list)
      .WithHint("bind them: " + HowToBind(roots, blockers));
}

}  // namespace

Result<std::unique_ptr<VfioGroup>> VfioGroup::Open(const HostRoots& roots, unsigned number) {
  const std::string path = fmt::format("{}/vfio/{}", roots.dev, number);
  auto fd = sys::Open(path, O_RDWR);
  if (!fd) {
    Error error = std::move(fd).error();
    if (error.code() == EBUSY)
      return std::unexpected(Error::Of("IOMMU group {} is in use by another process", number)
                                 .WithHint(fmt::format("fuser -v {} names it", path)));
    if (error.code() == EACCES || error.code() == EPERM)
      return std::unexpected(std::move(error).WithHint(
          fmt::format("give your user read and write access: chown USER {}", path)));
    return std::unexpected(std::move(error));
  }
  vfio_group_status status{};
  status.argsz = sizeof status;
  TRY(sys::Ioctl(fd->get(), SYS_REQUEST(VFIO_GROUP_GET_STATUS), &status));
  if ((status.flags & VFIO_GROUP_FLAGS_VIABLE) == 0)
    return std::unexpected(NotViable(roots, number));
  return std::unique_ptr<VfioGroup>(new VfioGroup(number, *std::move(fd)));
}

Result<Fd> VfioGroup::OpenDevice(const std::string& address) const {
  auto fd = sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_GROUP_GET_DEVICE_FD), address.c_str(),
                       [&] { return address; });
  if (fd) return Fd(*fd);
  Error error = std::move(fd).error();
  if (error.code() == EBUSY)
    return std::unexpected(std::move(error).WithHint("another process uses the device"));
  return std::unexpected(std::move(error));
}

}  // namespace crossbar
