// VfioContainer: a type1 container: one IOMMU translation for the groups in it, and so one DmaDomain.
// It maps by host address: the kernel finds the pages or, for a BAR, the page frames behind the vma
// (vfio_iommu_type1.c, follow_fault_pfn).
//
// Owned by VfioHost, attached to on the main thread before anything is mapped; afterwards AddressSpace
// alone calls it. An ioctl cannot be given up: a deadline has no effect here.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "devices/vfio/group.h"
#include "devices/vfio/sysfs.h"
#include "memory/dma_domain.h"

namespace crossbar {

class VfioContainer : public DmaDomain {
 public:
  // `number` is for people.
  static Result<std::unique_ptr<VfioContainer>> Open(const HostRoots& roots, unsigned number);

  // The first group sets the container's IOMMU up. Error: the group does not fit in (EINVAL: its
  // reserved regions or its IOMMU conflict with the others'), no interrupt remapping (EPERM).
  // `group` is borrowed.
  Result<> Attach(const VfioGroup& group);

  // Its devices reach the BARs at `bars` past it, for this reason (DmaDomain::Unguarded).
  void AddUnguarded(std::span<const PhysicalRange> bars, const std::string& reason);

  // What the IOMMU translates, as the groups that are attached leave it: ascending. Empty where the
  // kernel does not say.
  Result<std::vector<GuestRange>> IovaRanges() const;

  // --- DmaDomain
  std::string name() const override { return name_; }
  Result<std::string> Map(GuestRange range, const Backing& backing, Deadline deadline) override;
  std::string Unguarded(const Backing& backing) const override;
  State state() const override { return State::kServing; }
  UnmapTicket StartUnmap(GuestRange range) override;
  Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) override;

 private:
  VfioContainer(std::string name, Fd fd) : name_(std::move(name)), fd_(std::move(fd)) {}

  const std::string name_;
  const Fd fd_;
  bool has_iommu_ = false;
  std::vector<std::pair<PhysicalRange, std::string>> unguarded_;  // constant once a domain
  // Of unmaps that are done and not yet awaited; AddressSpace's lock guards it.
  std::map<UnmapTicket, Unmapped> done_;
  UnmapTicket last_ticket_ = 0;
};

}  // namespace crossbar
