#include "devices/pci_access.h"

#include "base/check.h"
#include "memory/address.h"

namespace crossbar {
namespace {

// Calls access(at, bytes, shift) for the fewest naturally aligned pieces of at most 4 bytes;
// `shift` is where the piece lies in the value, in bits.
template <typename Access>
void ForEachPiece(uint64_t offset, unsigned size, Access&& access) {
  CHECK(size <= 8);
  for (unsigned done = 0; done < size;) {
    const uint64_t at = offset + done;
    unsigned bytes = 4;
    while (bytes > size - done || !IsAligned(at, bytes)) bytes /= 2;
    access(at, bytes, 8 * done);
    done += bytes;
  }
}

constexpr PciDevfn DevfnAt(uint64_t packed) {
  return {static_cast<uint8_t>((packed >> 3) & 0x1f), static_cast<uint8_t>(packed & 7)};
}

constexpr PciAddress EcamAddress(uint8_t first_bus, uint64_t offset) {
  return {static_cast<uint8_t>(first_bus + (offset >> 20)), DevfnAt(offset >> 12)};
}
constexpr uint16_t EcamRegister(uint64_t offset) {
  return offset & 0xfff;
}

constexpr uint64_t kDataPorts = 4;  // offset of 0xcfc
constexpr uint64_t kResetControlPort = 1;
constexpr uint32_t kEnable = 1u << 31;
// Bits 30-24 and 1-0 are reserved and read as 0.
constexpr uint32_t kAddressMask = kEnable | 0x00fffffc;

constexpr PciAddress Cf8Address(uint32_t address) {
  return {static_cast<uint8_t>(address >> 16), DevfnAt(address >> 8)};
}
constexpr uint16_t Cf8Register(uint32_t address, uint64_t offset) {
  return static_cast<uint16_t>((address & 0xfc) | (offset & 3));
}

}  // namespace

uint64_t EcamWindow::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  ForEachPiece(offset, size, [&](uint64_t at, unsigned bytes, unsigned shift) {
    const PciAddress address = EcamAddress(root_.first_bus(), at);
    value |= uint64_t{root_.Read(address, EcamRegister(at), bytes)} << shift;
  });
  return value;
}

void EcamWindow::Write(uint64_t offset, unsigned size, uint64_t value) {
  ForEachPiece(offset, size, [&](uint64_t at, unsigned bytes, unsigned shift) {
    const auto piece = static_cast<uint32_t>((value >> shift) & AllOnes(bytes));
    root_.Write(EcamAddress(root_.first_bus(), at), EcamRegister(at), bytes, piece);
  });
}

// An access across 0xcfc is two on the bus, as a CPU makes of any that crosses a dword.
uint64_t Cf8Ports::Read(uint64_t offset, unsigned size) {
  if (offset >= kDataPorts) return ReadData(offset, size);
  if (offset + size <= kDataPorts) return ReadAddress(offset, size);
  const auto low = static_cast<unsigned>(kDataPorts - offset);
  return ReadAddress(offset, low) | ReadData(kDataPorts, size - low) << (8 * low);
}

void Cf8Ports::Write(uint64_t offset, unsigned size, uint64_t value) {
  if (offset >= kDataPorts) return WriteData(offset, size, value);
  if (offset + size <= kDataPorts) return WriteAddress(offset, size, value);
  const auto low = static_cast<unsigned>(kDataPorts - offset);
  WriteAddress(offset, low, value & AllOnes(low));
  WriteData(kDataPorts, size - low, value >> (8 * low));
}

uint64_t Cf8Ports::ReadAddress(uint64_t offset, unsigned size) const {
  if (offset == 0 && size == 4) return address_;
  if (offset == kResetControlPort && size == 1) return reset_control_.Read();
  return AllOnes(size);
}

void Cf8Ports::WriteAddress(uint64_t offset, unsigned size, uint64_t value) {
  if (offset == 0 && size == 4) address_ = static_cast<uint32_t>(value) & kAddressMask;
  if (offset == kResetControlPort && size == 1) reset_control_.Write(static_cast<uint8_t>(value));
}

uint64_t Cf8Ports::ReadData(uint64_t offset, unsigned size) {
  const uint32_t address = address_;
  if ((address & kEnable) == 0) return AllOnes(size);
  uint64_t value = 0;
  ForEachPiece(offset, size, [&](uint64_t at, unsigned bytes, unsigned shift) {
    const uint32_t piece = root_.Read(Cf8Address(address), Cf8Register(address, at), bytes);
    value |= uint64_t{piece} << shift;
  });
  return value;
}

void Cf8Ports::WriteData(uint64_t offset, unsigned size, uint64_t value) {
  const uint32_t address = address_;
  if ((address & kEnable) == 0) return;
  ForEachPiece(offset, size, [&](uint64_t at, unsigned bytes, unsigned shift) {
    const auto piece = static_cast<uint32_t>((value >> shift) & AllOnes(bytes));
    root_.Write(Cf8Address(address), Cf8Register(address, at), bytes, piece);
  });
}

}  // namespace crossbar
