// VfioGroup: an IOMMU group, opened. Devices that the IOMMU cannot tell apart are one group, and go to
// one user together (Documentation/driver-api/vfio.rst).
//
// Owned by the devices that were opened from it (KernelBackend). Opened on the main thread; closes on
// any.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "devices/vfio/sysfs.h"

namespace crossbar {

class VfioGroup {
 public:
  // Errors name what is in the way and what to do: a device of the group that another driver has, no
  // permission, in use by somebody else.
  static Result<std::unique_ptr<VfioGroup>> Open(const HostRoots& roots, unsigned number);

  unsigned number() const { return number_; }
  int fd() const { return fd_.get(); }

  // The device's own file. Error: in use, or not in this group.
  Result<Fd> OpenDevice(const std::string& address) const;

 private:
  VfioGroup(unsigned number, Fd fd) : number_(number), fd_(std::move(fd)) {}

  const unsigned number_;
  const Fd fd_;
};

}  // namespace crossbar
