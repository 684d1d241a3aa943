#include "devices/vfio_user/served_device.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/pci_regs.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/sys.h"

namespace crossbar::vfio_user {
namespace {

// The largest access that a bus would make of what begins at `offset`.
unsigned AccessSize(uint64_t offset, size_t left, unsigned most) {
  unsigned size = most;
  while (size > left || offset % size != 0) size /= 2;
  return size;
}

// For a client that is asked for its memory by message, at the end of bus mastering.
constexpr auto kPatience = std::chrono::milliseconds(100);

constexpr uint16_t kExpressSize = 0x3c;  // PCIe 6.0, 7.5.3

constexpr uint16_t Low16(uint64_t offset) { return static_cast<uint16_t>(offset); }

}  // namespace

ServedDevice::ServedDevice(const Identity& identity,
                           std::array<uint32_t, InterruptLines::kKinds> counts)
    : lines_(counts) {
  config_.Set<uint16_t>(PCI_VENDOR_ID, identity.vendor);
  config_.Set<uint16_t>(PCI_DEVICE_ID, identity.device);
  config_.Set<uint16_t>(PCI_SUBSYSTEM_VENDOR_ID, 0x1af4);
  config_.Set<uint16_t>(PCI_SUBSYSTEM_ID, 0x1100);
  config_.Set<uint32_t>(PCI_CLASS_REVISION, identity.class_code << 8 | identity.revision);
  config_.SetWritable<uint16_t>(PCI_COMMAND,
                                PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
  config_.SetWritable<uint8_t>(PCI_INTERRUPT_LINE, 0xff);
  if (identity.intx) config_.Set<uint8_t>(PCI_INTERRUPT_PIN, 1);
}

void ServedDevice::SetBarRegister(unsigned bar, uint64_t size, bool wide) {
  const auto at = Low16(PCI_BASE_ADDRESS_0 + 4 * bar);
  const uint64_t mask = ~(size - 1);
  config_.SetWritable<uint32_t>(at, static_cast<uint32_t>(mask));
  if (!wide) return;
  config_.Set<uint32_t>(at, PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH);
  config_.SetWritable<uint32_t>(Low16(at + 4), static_cast<uint32_t>(mask >> 32));
}

void ServedDevice::AddRegisters(unsigned bar, uint64_t size) {
  CHECK(std::has_single_bit(size) && size >= 16);
  bars_[bar].size = size;
  SetBarRegister(bar, size, false);
}

Result<> ServedDevice::AddMemory(unsigned index, uint64_t size, const char* name) {
  CHECK(std::has_single_bit(size) && size >= kPageSize);
  Bar& bar = bars_[index];
  bar.file = TRY(sys::MemfdCreate(name, MFD_ALLOW_SEALING));
  TRY(sys::Ftruncate(bar.file.get(), size));
  TRY(sys::AddSeals(bar.file.get(), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
  bar.memory = TRY(HostMapping::Map(bar.file.get(), 0, size, PROT_READ | PROT_WRITE));
  bar.size = size;
  bar.wide = true;
  SetBarRegister(index, size, true);
  return {};
}

Result<> ServedDevice::AddFunctionReset(FunctionReset kind) {
  if (kind == FunctionReset::kNone) return {};
  const bool af = kind == FunctionReset::kAf;
  const auto base = af ? config_.AddCapability(PCI_CAP_ID_AF, PCI_CAP_AF_SIZEOF)
                       : config_.AddCapability(PCI_CAP_ID_EXP, kExpressSize);
  if (!base) return Fail("no room for capabilities");
  const auto at = [&](unsigned offset) { return Low16(*base + offset); };
  if (af) {
    config_.Set<uint8_t>(at(PCI_AF_LENGTH), PCI_CAP_AF_SIZEOF);
    config_.Set<uint8_t>(at(PCI_AF_CAP), PCI_AF_CAP_TP | PCI_AF_CAP_FLR);
    config_.SetWritable<uint8_t>(at(PCI_AF_CTRL), PCI_AF_CTRL_FLR);
    reset_register_ = at(PCI_AF_CTRL);
    reset_bit_ = PCI_AF_CTRL_FLR;
    return {};
  }
  config_size_ = PciConfigSpace::kSize;
  // Version 2, an endpoint in the root complex: it has no link.
  config_.Set<uint16_t>(at(PCI_EXP_FLAGS), 2 | PCI_EXP_TYPE_RC_END << 4);
  config_.Set<uint32_t>(at(PCI_EXP_DEVCAP), PCI_EXP_DEVCAP_FLR | PCI_EXP_DEVCAP_RBER);
  config_.SetWritable<uint16_t>(at(PCI_EXP_DEVCTL), 0xffff);
  reset_register_ = at(PCI_EXP_DEVCTL + 1);
  reset_bit_ = PCI_EXP_DEVCTL_BCR_FLR >> 8;
  return {};
}

uint64_t ServedDevice::region_size(unsigned region) const {
  if (region == kConfig) return config_size_;
  return region < kBars ? bars_[region].size : 0;
}

bool ServedDevice::Read(unsigned region, uint64_t offset, std::span<std::byte> data) {
  const uint64_t end = region_size(region);
  if (offset > end || data.size() > end - offset) return false;
  if (region < kBars && bars_[region].memory.valid()) {
    std::ranges::copy(bars_[region].memory.bytes().subspan(offset, data.size()), data.begin());
    return true;
  }
  while (!data.empty()) {
    const unsigned size = AccessSize(offset, data.size(), region == kConfig ? 4 : 8);
    const uint64_t value = region == kConfig ? ReadConfig(Low16(offset), size)
                                             : ReadRegister(region, offset, size);
    std::memcpy(data.data(), &value, size);
    data = data.subspan(size);
    offset += size;
  }
  return true;
}

bool ServedDevice::Write(unsigned region, uint64_t offset, std::span<const std::byte> data) {
  const uint64_t end = region_size(region);
  if (offset > end || data.size() > end - offset) return false;
  if (region < kBars && bars_[region].memory.valid()) {
    std::ranges::copy(data, bars_[region].memory.bytes().subspan(offset).begin());
    return true;
  }
  while (!data.empty()) {
    const unsigned size = AccessSize(offset, data.size(), region == kConfig ? 4 : 8);
    uint64_t value = 0;
    std::memcpy(&value, data.data(), size);
    if (region == kConfig) {
      config_.Write(Low16(offset), size, static_cast<uint32_t>(value));
    } else {
      WriteRegister(region, offset, size, value);
    }
    data = data.subspan(size);
    offset += size;
  }
  if (region == kConfig) {
    NoteCommand();
    if (TakeFunctionReset()) Reset();
  }
  return true;
}

bool ServedDevice::TakeFunctionReset() {
  if (reset_register_ == 0) return false;
  const auto value = config_.Get<uint8_t>(reset_register_);
  config_.Set<uint8_t>(reset_register_, static_cast<uint8_t>(value & ~reset_bit_));
  return (value & reset_bit_) != 0;
}

void ServedDevice::NoteCommand() {
  const auto command = config_.Get<uint16_t>(PCI_COMMAND);
  const bool master = (command & PCI_COMMAND_MASTER) != 0;
  // Whoever has been told that it is off may use the memory for something else.
  if (bus_master_.exchange(master) && !master) memory_.AwaitUnwanted(kPatience);
  const bool disabled = (command & PCI_COMMAND_INTX_DISABLE) != 0;
  MutexLock lock(intx_mutex_);
  if (std::exchange(intx_disabled_, disabled) != disabled) lines_.SetIntx(intx_ && !disabled);
}

void ServedDevice::SetIntx(bool asserted) {
  MutexLock lock(intx_mutex_);
  intx_ = asserted;
  lines_.SetIntx(asserted && !intx_disabled_);
}

// Naturally aligned: it holds all of the low byte of PCI_STATUS, where the bit is, or none of it. The bit
// is there whether INTx is disabled or not (PCI 3.0, 6.2.3): drivers that share a line ask it.
uint64_t ServedDevice::ReadConfig(uint16_t offset, unsigned size) {
  const uint64_t value = config_.Read(offset, size);
  if (offset > PCI_STATUS || PCI_STATUS - offset >= static_cast<int>(size)) return value;
  MutexLock lock(intx_mutex_);
  return value | (intx_ ? uint64_t{PCI_STATUS_INTERRUPT} << 8 * (PCI_STATUS - offset) : 0);
}

void ServedDevice::Reset() {
  config_.Set<uint16_t>(PCI_COMMAND, 0);
  config_.Set<uint8_t>(PCI_INTERRUPT_LINE, 0);
  for (unsigned i = 0; i < kBars; ++i) {
    if (bars_[i].size == 0) continue;
    const auto at = Low16(PCI_BASE_ADDRESS_0 + 4 * i);
    config_.Set<uint32_t>(at, config_.Get<uint32_t>(at) & 0xf);
    if (bars_[i].wide) config_.Set<uint32_t>(Low16(at + 4), 0);
  }
  NoteCommand();
  OnReset();
  SetIntx(false);
}

}  // namespace crossbar::vfio_user
