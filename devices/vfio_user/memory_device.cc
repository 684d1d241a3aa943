#include "devices/vfio_user/memory_device.h"

#include <bit>

namespace crossbar::vfio_user {
namespace {

constexpr uint64_t kRegisters = 256;
constexpr uint64_t kInterruptMask = 0;

}  // namespace

MemoryDevice::MemoryDevice()
    : ServedDevice({.vendor = 0x1af4, .device = 0x1110, .revision = 1, .class_code = 0x050000}, {}) {}

Result<> MemoryDevice::CheckSize(uint64_t size) {
  if (std::has_single_bit(size) && size >= kPageSize && size <= 1ull << 40) return {};
  return Fail("a BAR of {:#x} bytes: its size is a power of two from 4K to 1T", size);
}

Result<std::unique_ptr<MemoryDevice>> MemoryDevice::Create(uint64_t size, FunctionReset reset) {
  TRY(CheckSize(size));
  std::unique_ptr<MemoryDevice> device(new MemoryDevice);
  device->AddRegisters(0, kRegisters);
  TRY(device->AddMemory(kMemoryBar, size, "memory-bar2"));
  TRY(device->AddFunctionReset(reset));
  return device;
}

uint64_t MemoryDevice::ReadRegister(unsigned, uint64_t offset, unsigned) {
  return offset == kInterruptMask ? mask_ : 0;
}

void MemoryDevice::WriteRegister(unsigned, uint64_t offset, unsigned, uint64_t value) {
  if (offset == kInterruptMask) mask_ = static_cast<uint32_t>(value);
}

}  // namespace crossbar::vfio_user
