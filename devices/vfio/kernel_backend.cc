#include "devices/vfio/kernel_backend.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/sys.h"
#include "devices/vfio/info.h"

namespace crossbar {
namespace {

// The largest page that x86 and arm64 can map a BAR with (arch_supports PUD pfnmaps).
constexpr uint64_t kLargestPage = kGiB;

std::vector<VfioBackend::Area> MappableAreas(const VfioInfo<vfio_region_info>& info) {
  const vfio_region_info fixed = info.fixed();
  if ((fixed.flags & VFIO_REGION_INFO_FLAG_MMAP) == 0) return {};
  const auto sparse = info.Capability(fixed.cap_offset, VFIO_REGION_INFO_CAP_SPARSE_MMAP);
  if ((fixed.flags & VFIO_REGION_INFO_FLAG_CAPS) == 0 || sparse.empty())
    return {{0, AlignDown(fixed.size, kPageSize)}};
  std::vector<VfioBackend::Area> areas;
  for (const vfio_region_sparse_mmap_area& area : ElementsOf<vfio_region_sparse_mmap_area>(
           sparse, offsetof(vfio_region_info_cap_sparse_mmap, nr_areas),
           sizeof(vfio_region_info_cap_sparse_mmap))) {
    if (area.size != 0 && IsAligned(area.offset | area.size, kPageSize))
      areas.push_back({area.offset, area.size});
  }
  std::ranges::sort(areas, {}, &VfioBackend::Area::offset);
  return areas;
}

}  // namespace

Result<std::unique_ptr<KernelBackend>> KernelBackend::Create(
    HostPciDevice device, std::shared_ptr<const VfioGroup> group, Fd fd) {
  std::unique_ptr<KernelBackend> backend(
      new KernelBackend(std::move(device), std::move(group), std::move(fd)));
  TRY(backend->Query());
  return backend;
}

Result<> KernelBackend::Query() {
  vfio_device_info info{};
  info.argsz = sizeof info;
  TRY(sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_DEVICE_GET_INFO), &info));
  if ((info.flags & VFIO_DEVICE_FLAGS_PCI) == 0) return Fail("VFIO says that it is no PCI device");
  can_reset_ = (info.flags & VFIO_DEVICE_FLAGS_RESET) != 0;
  for (unsigned i = 0; i < std::min<size_t>(info.num_regions, kRegions); ++i) TRY(QueryRegion(i));
  for (unsigned i = 0; i < std::min<size_t>(info.num_irqs, kInterrupts); ++i) {
    vfio_irq_info irq{};
    irq.argsz = sizeof irq;
    irq.index = i;
    const auto queried = sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_DEVICE_GET_IRQ_INFO), &irq,
                                    [&] { return fmt::format("{}", i); });
    // ERR is EINVAL where the device is not PCIe (vfio_pci_core.c, vfio_pci_ioctl_get_irq_info).
    if (!queried && queried.error().code() == EINVAL) continue;
    TRY(queried);
    if ((irq.flags & VFIO_IRQ_INFO_EVENTFD) == 0) continue;
    interrupts_[i] = {irq.count, (irq.flags & VFIO_IRQ_INFO_NORESIZE) == 0};
  }
  return {};
}

Result<> KernelBackend::QueryRegion(unsigned index) {
  auto queried = VfioInfo<vfio_region_info>::Get(
      fd_.get(), SYS_REQUEST(VFIO_DEVICE_GET_REGION_INFO), index);
  // The VGA region of a device that has none.
  if (!queried && queried.error().code() == EINVAL) return {};
  const VfioInfo<vfio_region_info> info = TRY(std::move(queried));
  const vfio_region_info fixed = info.fixed();
  Region& region = regions_[index].region;
  region.size = fixed.size;
  region.readable = (fixed.flags & VFIO_REGION_INFO_FLAG_READ) != 0;
  region.writable = (fixed.flags & VFIO_REGION_INFO_FLAG_WRITE) != 0;
  region.mappable = MappableAreas(info);
  regions_[index].offset = fixed.offset;
  return {};
}

VfioBackend::Region KernelBackend::region(unsigned index) const {
  return index < kRegions ? regions_[index].region : Region();
}

VfioBackend::Interrupt KernelBackend::interrupt(unsigned index) const {
  return index < kInterrupts ? interrupts_[index] : Interrupt();
}

Result<> KernelBackend::Read(unsigned region, uint64_t offset, std::span<std::byte> data) {
  while (!data.empty()) {
    const size_t n = TRY(sys::Pread(fd_.get(), data, regions_[region].offset + offset));
    if (n == 0) return std::unexpected(Error(EIO, "the region ends there"));
    data = data.subspan(n);
    offset += n;
  }
  return {};
}

Result<> KernelBackend::Write(unsigned region, uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const size_t n = TRY(sys::Pwrite(fd_.get(), data, regions_[region].offset + offset));
    if (n == 0) return std::unexpected(Error(EIO, "the region ends there"));
    data = data.subspan(n);
    offset += n;
  }
  return {};
}

// Lies in huge pages as the BAR does, on the host's bus and on the guest's, where it is aligned to its
// size: only so can the kernel map it by them (vfio_pci_core.c, vfio_pci_vmf_insert_pfn; KVM's x86.c,
// kvm_alloc_memslot_metadata).
Result<Backing> KernelBackend::MapArea(unsigned region, const Area& area) {
  const RegionInfo& info = regions_[region];
  const int protection =
      (info.region.readable ? PROT_READ : 0) | (info.region.writable ? PROT_WRITE : 0);
  const uint64_t alignment = std::clamp(std::bit_floor(info.region.size), kPageSize, kLargestPage);
  HostMapping mapping = TRY(HostMapping::Map(fd_.get(), info.offset + area.offset, area.size,
                                             protection, alignment, area.offset % alignment));
  // A wish: without it the kernel maps page by page.
  static_cast<void>(sys::Madvise(mapping.address().pointer(), mapping.size(), MADV_HUGEPAGE));
  Backing backing;
  backing.writable = info.region.writable;
  backing.host = mapping.address();
  if (region < device_.resources.size() && device_.resources[region].size != 0)
    backing.bar_physical = device_.resources[region].start + area.offset;
  mappings_.push_back(std::move(mapping));
  return backing;
}

Result<> KernelBackend::SetIrqs(unsigned index, uint32_t flags, uint32_t start, uint32_t count,
                                std::span<const int> data) {
  std::vector<std::byte> bytes(sizeof(vfio_irq_set) + data.size_bytes());
  vfio_irq_set set{};
  set.argsz = static_cast<uint32_t>(bytes.size());
  set.flags = flags;
  set.index = index;
  set.start = start;
  set.count = count;
  std::memcpy(bytes.data(), &set, sizeof set);
  if (!data.empty())
    std::memcpy(bytes.data() + sizeof set, data.data(), data.size_bytes());
  const int left = TRY(sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_DEVICE_SET_IRQS), bytes.data(),
                                  [&] { return fmt::format("kind {} vectors {}+{}", index, start, count); }));
  // vfio_msi_enable: where the host has fewer vectors it sets none, and returns how many there would be.
  if (left > 0)
    return std::unexpected(Error(ENOSPC, fmt::format("the host has {} of {} vectors for it", left, start + count)));
  return {};
}

Result<> KernelBackend::SetInterrupts(unsigned index, uint32_t start, std::span<const int> eventfds) {
  return SetIrqs(index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, start,
                 static_cast<uint32_t>(eventfds.size()), eventfds);
}

Result<> KernelBackend::DisableInterrupts(unsigned index) {
  return SetIrqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, {});
}

Result<> KernelBackend::UnmaskIntx() {
  return SetIrqs(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 0, 1,
                 {});
}

Result<bool> KernelBackend::SetIntxUnmaskEvent(int eventfd) {
  TRY(SetIrqs(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK, 0, 1,
              std::span(&eventfd, 1)));
  return true;
}

Result<> KernelBackend::Reset() {
  TRY(sys::Ioctl(fd_.get(), SYS_REQUEST(VFIO_DEVICE_RESET)));
  return {};
}

// The container is shared with other devices, so its mappings stay; this device starts no DMA without
// bus mastering. One that is really gone fails this, and does none either.
void KernelBackend::LeaveBus() {
  uint16_t command = 0;
  const auto bytes = std::as_writable_bytes(std::span(&command, 1));
  if (!Read(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, bytes)) return;
  command &= static_cast<uint16_t>(~PCI_COMMAND_MASTER);
  static_cast<void>(Write(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, bytes));
}

}  // namespace crossbar
