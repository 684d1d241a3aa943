#include "lib/edu.h"

#include "lib/apic.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/time.h"

namespace guest {
namespace {

namespace reg {
constexpr uint64_t kId = 0x00, kLiveness = 0x04, kInterruptStatus = 0x24, kRaise = 0x60,
                   kAcknowledge = 0x64, kSource = 0x80, kDestination = 0x88, kCount = 0x90,
                   kCommand = 0x98;
// Extensions of our own device server (devices/vfio_user/dma_device.h).
constexpr uint64_t kMagic = 0xf00, kBufferSize = 0xf08;
}
constexpr uint32_t kMagic = 0x58424152;
constexpr uint64_t kBuffer = 0x40000;  // its address, as the engine sees it
constexpr uint32_t kRun = 1, kInterrupt = 4;

}  // namespace

bool Edu::Start(unsigned skip) {
  if (!FindFunction(kVendor, kDevice, &function_, skip)) return false;
  Bar bar;
  if (!ReadBar(function_, 0, &bar) || bar.range.size == 0) return false;
  Map(bar.range, Caching::kUncached);
  registers_ = bar.range.start;
  WriteConfig16(function_.bdf, pci::kCommand, pci::kCommandMemory | pci::kCommandMaster);
  return Read<uint32_t>(registers_ + reg::kId) == kIdentification;
}

bool Edu::Alive() const {
  Write<uint32_t>(registers_ + reg::kLiveness, 0x12345678);
  return Read<uint32_t>(registers_ + reg::kLiveness) == ~0x12345678u;
}

uint64_t Edu::buffer_size() const {
  if (Read<uint32_t>(registers_ + reg::kMagic) != kMagic) return kBufferSize;
  return Read<uint64_t>(registers_ + reg::kBufferSize);
}

bool Edu::UseMsi(uint8_t vector) {
  const unsigned at = FindCapability(function_.bdf, pci::kCapabilityMsi);
  if (at == 0) return false;
  const uint16_t control = ReadConfig16(function_.bdf, at + 2);
  const bool wide = (control & 0x80) != 0;
  WriteConfig32(function_.bdf, at + 4, static_cast<uint32_t>(kLocalApic) | LocalApicId() << 12);
  if (wide) WriteConfig32(function_.bdf, at + 8, 0);
  WriteConfig16(function_.bdf, at + (wide ? 12 : 8), vector);
  WriteConfig16(function_.bdf, at + 2, static_cast<uint16_t>(control | 1));
  interrupts_ = true;
  return true;
}

bool Edu::UseMsix(uint8_t vector) {
  const unsigned at = FindCapability(function_.bdf, pci::kCapabilityMsix);
  if (at == 0) return false;
  const uint32_t place = ReadConfig32(function_.bdf, at + 4);
  Bar bar;
  if (!ReadBar(function_, place & 7, &bar) || bar.range.size == 0) return false;
  Map(bar.range, Caching::kUncached);
  const uint64_t entry = bar.range.start + (place & ~7u);  // of vector 0
  Write<uint32_t>(entry, static_cast<uint32_t>(kLocalApic) | LocalApicId() << 12);
  Write<uint32_t>(entry + 4, 0);
  Write<uint32_t>(entry + 8, vector);
  Write<uint32_t>(entry + 12, 0);  // not masked
  if (const unsigned msi = FindCapability(function_.bdf, pci::kCapabilityMsi))
    WriteConfig16(function_.bdf, msi + 2, ReadConfig16(function_.bdf, msi + 2) & ~1u);
  WriteConfig16(function_.bdf, at + 2, ReadConfig16(function_.bdf, at + 2) | 0x8000);
  interrupts_ = true;
  return true;
}

bool Edu::UseIntx(uint8_t vector) {
  if (ReadConfig8(function_.bdf, pci::kInterruptPin) == 0) return false;
  const uint32_t pin = ReadConfig8(function_.bdf, pci::kInterruptLine);
  if (pin >= IoApicPins()) return false;
  RouteIoApicPin(pin, vector, LocalApicId(), Trigger::kLevel);
  interrupts_ = true;
  return true;
}

void Edu::Program(Direction direction, uint64_t address, uint64_t size, uint64_t offset,
                  uint32_t command) {
  const bool from = direction == Direction::kFromDevice;
  Write<uint64_t>(registers_ + reg::kSource, from ? kBuffer + offset : address);
  Write<uint64_t>(registers_ + reg::kDestination, from ? address : kBuffer + offset);
  Write<uint64_t>(registers_ + reg::kCount, size);
  Write<uint32_t>(registers_ + reg::kCommand,
                  command | static_cast<uint32_t>(direction) | (interrupts_ ? kInterrupt : 0));
}

void Edu::Prepare(Direction direction, uint64_t address, uint64_t size, uint64_t offset) {
  Program(direction, address, size, offset, 0);
}

void Edu::Begin(Direction direction, uint64_t address, uint64_t size, uint64_t offset) {
  Program(direction, address, size, offset, kRun);
}

bool Edu::Finish() const {
  Deadline deadline(5'000'000);
  while ((Read<uint32_t>(registers_ + reg::kCommand) & kRun) != 0) {
    if (deadline.Passed()) return false;
    Pause();
  }
  return true;
}

void Edu::Raise(uint32_t causes) const {
  Write<uint32_t>(registers_ + reg::kRaise, causes);
}

uint32_t Edu::TakeInterrupt() const {
  const uint32_t status = Read<uint32_t>(registers_ + reg::kInterruptStatus);
  Write<uint32_t>(registers_ + reg::kAcknowledge, status);
  return status;
}

}  // namespace guest
