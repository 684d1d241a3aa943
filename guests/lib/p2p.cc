#include "lib/p2p.h"

#include "lib/command_line.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/random.h"
#include "lib/string.h"
#include "lib/time.h"

namespace guest {
namespace {

constexpr uint64_t kIvshmem = 0x1af41110;
constexpr unsigned kPowerControl = 4;       // of the power management capability
constexpr unsigned kDeviceCapabilities = 4;  // of the PCIe capability
constexpr unsigned kDeviceControl = 8;
constexpr uint32_t kCanReset = 1 << 28;
constexpr uint16_t kStartReset = 1 << 15;
constexpr unsigned kAdvancedCapabilities = 3;  // of the AF capability
constexpr unsigned kAdvancedControl = 4;
constexpr uint8_t kAdvancedCanReset = 1 << 1;
constexpr uint8_t kAdvancedStartReset = 1 << 0;
constexpr uint64_t kResetTime = 100'000;   // microseconds (PCIe 6.0, 6.6.1 and 6.6.2)
constexpr uint64_t kBusResetTime = 2'000;  // at least 1 ms (7.5.1.3.13)
constexpr uint16_t kDecode = pci::kCommandMemory | pci::kCommandMaster;

// Whether a memory BAR overlaps `range`, which is somewhere above `target`. Only those above it can:
// the others are not sized, which would interrupt their decode.
bool Overlapped(const Range& range, const Range& target) {
  bool overlapped = false;
  ForEachFunction([&](const PciFunction& function) {
    for (unsigned i = 0; i < BarRegisters(function); ++i) {
      const unsigned at = pci::kBar0 + 4 * i;
      const uint32_t low = ReadConfig32(function.bdf, at);
      uint64_t start = low & ~15u;
      if ((low & 7) == 4) start |= uint64_t{ReadConfig32(function.bdf, at + 4)} << 32;
      Bar bar;
      if (start <= target.start || !ReadBar(function, i, &bar) || bar.io) continue;
      overlapped |= start < range.start + range.size && range.start < start + bar.range.size;
    }
  });
  return overlapped;
}

}  // namespace

bool Target::Find() {
  const uint64_t id = CommandLineNumber("target", kIvshmem);
  index_ = static_cast<unsigned>(CommandLineNumber("bar", 2));
  if (!FindFunction(static_cast<uint16_t>(id >> 16), static_cast<uint16_t>(id), &function_))
    return false;
  Bar bar;
  if (!ReadBar(function_, index_, &bar) || bar.range.size == 0 || bar.io) return false;
  range_ = bar.range;
  wide_ = bar.wide;
  other_ = range_.start + range_.size;
  while (Overlapped({other_, range_.size}, range_)) other_ += range_.size;
  Map(range_, Caching::kUncached);
  Map({other_, range_.size}, Caching::kUncached);
  for (unsigned i = 0; i < 6; ++i) registers_[i] = ReadConfig32(function_.bdf, pci::kBar0 + 4 * i);
  return true;
}

bool Target::Start() {
  if (!Find()) return false;
  WriteConfig16(function_.bdf, pci::kCommand, kDecode);
  return true;
}

bool Target::ParseCause(const char* name, Cause* cause) {
  static constexpr const char* kNames[] = {"decode", "power", "reset", "move", "bus"};
  unsigned number = 0;
  for (const char* known : kNames) {
    if (Equal(name, known)) {
      *cause = static_cast<Cause>(number);
      return true;
    }
    ++number;
  }
  return false;
}

void Target::WriteAddress(uint64_t address) {
  const unsigned at = pci::kBar0 + 4 * index_;
  WriteConfig32(function_.bdf, at, static_cast<uint32_t>(address));
  if (wide_) WriteConfig32(function_.bdf, at + 4, static_cast<uint32_t>(address >> 32));
}

bool Target::ResetFunction() {
  const Bdf bdf = function_.bdf;
  const unsigned express = FindCapability(bdf, pci::kCapabilityPcie);
  if (express != 0 && (ReadConfig32(bdf, express + kDeviceCapabilities) & kCanReset)) {
    const uint16_t control = ReadConfig16(bdf, express + kDeviceControl);
    WriteConfig16(bdf, express + kDeviceControl, control | kStartReset);
  } else if (const unsigned af = FindCapability(bdf, pci::kCapabilityAf);
             af != 0 && (ReadConfig8(bdf, af + kAdvancedCapabilities) & kAdvancedCanReset)) {
    WriteConfig8(bdf, af + kAdvancedControl, kAdvancedStartReset);
  } else {
    return false;
  }
  Delay(kResetTime);
  return true;
}

bool Target::ResetBus() {
  Bdf port;
  if (!FindBridgeAbove(function_, &port)) return false;
  const uint16_t control = ReadConfig16(port, pci::kBridgeControl);
  WriteConfig16(port, pci::kBridgeControl, control | pci::kBridgeControlReset);
  Delay(kBusResetTime);
  WriteConfig16(port, pci::kBridgeControl, control);
  Delay(kResetTime);
  return true;
}

bool Target::End(Cause cause) {
  switch (cause) {
    case Cause::kDecode: WriteConfig16(function_.bdf, pci::kCommand, 0); return true;
    case Cause::kMove: WriteAddress(other_); return true;
    case Cause::kPower: {
      const unsigned at = FindCapability(function_.bdf, pci::kCapabilityPowerManagement);
      if (at == 0) return false;
      WriteConfig16(function_.bdf, at + kPowerControl, 3);
      return true;
    }
    case Cause::kReset: return ResetFunction();
    case Cause::kBus: return ResetBus();
  }
  return false;
}

void Target::Restore(Cause cause) {
  if (cause == Cause::kPower) {
    const unsigned at = FindCapability(function_.bdf, pci::kCapabilityPowerManagement);
    WriteConfig16(function_.bdf, at + kPowerControl, 0);
    Delay(10'000);  // PCI Power Management 1.2, 5.6.1
  }
  if (cause == Cause::kReset || cause == Cause::kBus) {
    for (unsigned i = 0; i < 6; ++i) WriteConfig32(function_.bdf, pci::kBar0 + 4 * i, registers_[i]);
  }
  if (cause == Cause::kMove) WriteAddress(range_.start);
  WriteConfig16(function_.bdf, pci::kCommand, kDecode);
}

void FillPattern(uint64_t address, uint64_t size, uint64_t seed) {
  Random random(seed);
  for (uint64_t i = 0; i < size; i += 8) Write<uint64_t>(address + i, random.Next());
}

bool HoldsPattern(uint64_t address, uint64_t size, uint64_t seed, uint64_t* where, uint64_t* got) {
  Random random(seed);
  for (uint64_t i = 0; i < size; i += 8) {
    const uint64_t want = random.Next();
    *got = Read<uint64_t>(address + i);
    *where = address + i;
    if (*got != want) return false;
  }
  return true;
}

}  // namespace guest
