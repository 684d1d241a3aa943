// MemoryDevice: a PCI device that is memory: BAR 2, with the layout and identity of QEMU's ivshmem-plain
// (docs/specs/ivshmem-spec.rst), revision 1. The registers of BAR 0 do nothing without peers.
// Function-level reset is an extension.
#pragma once

#include <memory>

#include "devices/vfio_user/served_device.h"

namespace crossbar::vfio_user {

class MemoryDevice : public ServedDevice {
 public:
  static constexpr unsigned kMemoryBar = 2;

  // An error where a BAR cannot have that many bytes: a power of two from 4 KiB to 1 TiB.
  static Result<> CheckSize(uint64_t size);
  // `size`: of BAR 2. Errors: CheckSize's and the host's.
  static Result<std::unique_ptr<MemoryDevice>> Create(uint64_t size,
                                                      FunctionReset reset = FunctionReset::kNone);

 private:
  MemoryDevice();
  uint64_t ReadRegister(unsigned bar, uint64_t offset, unsigned size) override;
  void WriteRegister(unsigned bar, uint64_t offset, unsigned size, uint64_t value) override;
  void OnReset() override { mask_ = 0; }

  uint32_t mask_ = 0;
};

}  // namespace crossbar::vfio_user
