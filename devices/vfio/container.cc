#include "devices/vfio/container.h"

#include <fcntl.h>
#include <linux/vfio.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/sys.h"
#include "devices/vfio/info.h"

namespace crossbar {
namespace {

Error WithoutRemapping(Error error) {
  return std::move(error).WithHint(
      "the IOMMU does not remap interrupts: turn that on in the firmware (VT-d, x2APIC), or let "
      "devices forge interrupts: echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
}

}  // namespace

Result<std::unique_ptr<VfioContainer>> VfioContainer::Open(const HostRoots& roots, unsigned number) {
  const std::string path = roots.dev + "/vfio/vfio";
  auto fd = sys::Open(path, O_RDWR);
  if (!fd) {
    const bool denied = fd.error().code() == EACCES;
    return std::unexpected(std::move(fd).error().WithHint(
        denied ? "give all users access, as udev does: chmod 666 " + path
               : "load VFIO: modprobe vfio-pci"));
  }
  const int version = TRY(sys::Ioctl(fd->get(), SYS_REQUEST(VFIO_GET_API_VERSION)));
  if (version != VFIO_API_VERSION)
    return Fail("{} speaks version {} of VFIO, not {}", path, version, VFIO_API_VERSION);
  if (TRY(sys::Ioctl(fd->get(), SYS_REQUEST(VFIO_CHECK_EXTENSION), VFIO_TYPE1v2_IOMMU)) == 0) {
    return std::unexpected(Error::Of("the kernel offers no VFIO type 1 IOMMU")
                               .WithHint("load it: modprobe vfio_iommu_type1"));
  }
  return std::unique_ptr<VfioContainer>(
      new VfioContainer(fmt::format("type1 container {}", number), *std::move(fd)));
}

Result<> VfioContainer::Attach(const VfioGroup& group) {
  const int container = fd_.get();
  auto attached = sys::Ioctl(group.fd(), SYS_REQUEST(VFIO_GROUP_SET_CONTAINER), &container,
                             [&] { return fmt::format("group {}", group.number()); });
  if (!attached) {
    Error error = std::move(attached).error();
    return std::unexpected(error.code() == EPERM ? WithoutRemapping(std::move(error))
                                                 : std::move(error));
  }
  if (has_iommu_) return {};
  auto set = sys::Ioctl(container, SYS_REQUEST(VFIO_SET_IOMMU), VFIO_TYPE1v2_IOMMU);
  if (!set) {
    Error error = std::move(set).error();
    return std::unexpected(error.code() == EPERM ? WithoutRemapping(std::move(error))
                                                 : std::move(error));
  }
  has_iommu_ = true;
  return {};
}

Result<std::vector<GuestRange>> VfioContainer::IovaRanges() const {
  const VfioInfo<vfio_iommu_type1_info> info =
      TRY(VfioInfo<vfio_iommu_type1_info>::Get(fd_.get(), SYS_REQUEST(VFIO_IOMMU_GET_INFO)));
  std::vector<GuestRange> ranges;
  if ((info.fixed().flags & VFIO_IOMMU_INFO_CAPS) == 0) return ranges;
  const auto found = info.Capability(info.fixed().cap_offset, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
  if (found.empty()) return ranges;
  for (const vfio_iova_range& range :
       ElementsOf<vfio_iova_range>(found, offsetof(vfio_iommu_type1_info_cap_iova_range, nr_iovas),
                                   sizeof(vfio_iommu_type1_info_cap_iova_range))) {
    // [0, 2^64) has a size that 64 bits do not hold; the last page is of no use to anybody.
    const uint64_t size = range.end - range.start + 1;
    ranges.push_back({Gpa(range.start), size != 0 ? size : AlignDown(~0ull, kPageSize)});
  }
  return ranges;
}

void VfioContainer::AddUnguarded(std::span<const PhysicalRange> bars, const std::string& reason) {
  for (const PhysicalRange& bar : bars) unguarded_.emplace_back(bar, reason);
}

std::string VfioContainer::Unguarded(const Backing& backing) const {
  if (!backing.bar_physical) return {};
  for (const auto& [bar, reason] : unguarded_)
    if (*backing.bar_physical - bar.start < bar.size) return reason;
  return {};
}

Result<std::string> VfioContainer::Map(GuestRange range, const Backing& backing, Deadline) {
  if (backing.host == Hva()) return Fail("it is not mapped in this process");
  vfio_iommu_type1_dma_map map{};
  map.argsz = sizeof map;
  map.flags = VFIO_DMA_MAP_FLAG_READ | (backing.writable ? VFIO_DMA_MAP_FLAG_WRITE : 0u);
  map.vaddr = backing.host.value();
  map.iova = range.start.value();
  map.size = range.size;
  auto mapped = sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_IOMMU_MAP_DMA), &map,
                           [&] { return fmt::format("{}", range); });
  if (mapped) return "mmap";
  Error error = std::move(mapped).error();
  if (error.code() == EINVAL)
    return std::unexpected(std::move(error).Within("outside what the IOMMU translates"));
  return std::unexpected(std::move(error));
}

DmaDomain::UnmapTicket VfioContainer::StartUnmap(GuestRange range) {
  vfio_iommu_type1_dma_unmap unmap{};
  unmap.argsz = sizeof unmap;
  unmap.iova = range.start.value();
  unmap.size = range.size;
  const Result<int> result = sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_IOMMU_UNMAP_DMA), &unmap,
                                        [&] { return fmt::format("{}", range); });
  Unmapped unmapped;
  unmapped.bytes = unmap.size;
  if (!result) unmapped = {Unmapped::State::kFailed, 0, result.error()};
  done_.emplace(++last_ticket_, std::move(unmapped));
  return last_ticket_;
}

DmaDomain::Unmapped VfioContainer::AwaitUnmap(UnmapTicket ticket, Deadline) {
  auto done = done_.extract(ticket);
  CHECK(!done.empty());
  return std::move(done.mapped());
}

}  // namespace crossbar
