// KernelBackend: VfioBackend over a device file of the kernel's VFIO (Documentation/driver-api/vfio.rst,
// drivers/vfio/pci/vfio_pci_core.c).
//
// Owned by a PassthroughFunction; see devices/passthrough/backend.h for who calls what. Its mappings of
// BARs end with it, before its descriptor closes, and that closes before the group may.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "devices/passthrough/backend.h"
#include "devices/vfio/group.h"
#include "devices/vfio/sysfs.h"
#include "memory/host_mapping.h"

namespace crossbar {

class KernelBackend : public VfioBackend {
 public:
  // `fd` is the device's own. Error: it is no PCI device, or a query of it fails.
  static Result<std::unique_ptr<KernelBackend>> Create(HostPciDevice device,
                                                       std::shared_ptr<const VfioGroup> group, Fd fd);

  std::string name() const override { return device_.address; }
  Region region(unsigned index) const override;
  Interrupt interrupt(unsigned index) const override;
  bool can_reset() const override { return can_reset_; }

  Result<> Read(unsigned region, uint64_t offset, std::span<std::byte> data) override;
  Result<> Write(unsigned region, uint64_t offset, std::span<const std::byte> data) override;
  Result<Backing> MapArea(unsigned region, const Area& area) override;
  std::vector<IoEvent> IoEvents(unsigned) override { return {}; }

  Result<> SetInterrupts(unsigned index, uint32_t start, std::span<const int> eventfds) override;
  Result<> DisableInterrupts(unsigned index) override;
  Result<> UnmaskIntx() override;
  Result<bool> SetIntxUnmaskEvent(int eventfd) override;

  Result<> Reset() override;
  int lost_event() const override { return -1; }
  void LeaveBus() override;

 private:
  static constexpr size_t kRegions = 9;
  static constexpr size_t kInterrupts = 5;

  // What is `offset` of the device's file in the terms of the kernel, which are its own: never computed.
  struct RegionInfo {
    Region region;
    uint64_t offset = 0;
  };

  KernelBackend(HostPciDevice device, std::shared_ptr<const VfioGroup> group, Fd fd)
      : device_(std::move(device)), group_(std::move(group)), fd_(std::move(fd)) {}

  Result<> Query();
  Result<> QueryRegion(unsigned index);
  Result<> SetIrqs(unsigned index, uint32_t flags, uint32_t start, uint32_t count,
                   std::span<const int> data);

  const HostPciDevice device_;
  const std::shared_ptr<const VfioGroup> group_;
  const Fd fd_;
  bool can_reset_ = false;
  std::array<RegionInfo, kRegions> regions_;
  std::array<Interrupt, kInterrupts> interrupts_ = {};
  std::vector<HostMapping> mappings_;
};

}  // namespace crossbar
