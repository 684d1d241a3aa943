// PCI: configuration space by either mechanism, the walk over all functions, BARs, capabilities.
//
// Any CPU, but one at a time: mechanism 1 is an address and a data port.
#pragma once

#include <stdint.h>

#include "lib/boot_info.h"

namespace guest {

struct Bdf {
  uint8_t bus = 0, device = 0, function = 0;
};

enum class ConfigMechanism {
  kPorts,  // 0xcf8 and 0xcfc: the first 256 bytes
  kEcam,   // where the platform has one
};
bool HasEcam();

// `width` is 1, 2 or 4, `offset` a multiple of it. Out of reach reads as all ones.
uint32_t ReadConfig(ConfigMechanism mechanism, Bdf bdf, unsigned offset, unsigned width);
void WriteConfig(ConfigMechanism mechanism, Bdf bdf, unsigned offset, unsigned width,
                 uint32_t value);

// By ECAM if there is one.
uint8_t ReadConfig8(Bdf bdf, unsigned offset);
uint16_t ReadConfig16(Bdf bdf, unsigned offset);
uint32_t ReadConfig32(Bdf bdf, unsigned offset);
void WriteConfig8(Bdf bdf, unsigned offset, uint8_t value);
void WriteConfig16(Bdf bdf, unsigned offset, uint16_t value);
void WriteConfig32(Bdf bdf, unsigned offset, uint32_t value);

namespace pci {  // offsets and bits (PCIe 6.0, 7.5.1)
inline constexpr unsigned kId = 0x00, kCommand = 0x04, kStatus = 0x06, kClass = 0x08,
                          kHeaderType = 0x0e, kBar0 = 0x10, kSecondaryBus = 0x19,
                          kSubordinateBus = 0x1a, kCapabilities = 0x34,
                          kInterruptLine = 0x3c, kInterruptPin = 0x3d, kBridgeControl = 0x3e,
                          kExtended = 0x100;
inline constexpr uint16_t kCommandIo = 1 << 0, kCommandMemory = 1 << 1, kCommandMaster = 1 << 2,
                          kCommandIntxOff = 1 << 10;
inline constexpr uint16_t kStatusCapabilities = 1 << 4;
inline constexpr uint16_t kBridgeControlReset = 1 << 6;
inline constexpr uint8_t kHeaderTypeMask = 0x7f, kMultiFunction = 0x80, kBridge = 1;
inline constexpr uint8_t kCapabilityPowerManagement = 0x01, kCapabilityMsi = 0x05,
                         kCapabilityPcie = 0x10, kCapabilityMsix = 0x11, kCapabilityAf = 0x13;
inline constexpr uint32_t kAbsent = 0xffffffff;
}  // namespace pci

// A function that the walk has found.
struct PciFunction {
  Bdf bdf;
  uint16_t vendor, device;
  uint32_t class_code;  // 24 bits
  uint8_t revision;
  uint8_t header_type;  // without the multi-function bit
};

bool ReadFunction(Bdf bdf, PciFunction* function);

// Calls visit(const PciFunction&) for every function on every bus of the platform, in order.
template <typename Visit>
void ForEachFunction(Visit visit);

// The first function with these ids, or, with 0xffff, of any vendor or device.
bool FindFunction(uint16_t vendor, uint16_t device, PciFunction* function, unsigned skip = 0);

struct Bar {
  unsigned index;  // of its first register
  bool io, wide, prefetchable;
  Range range;  // size 0: not implemented
};

// Sizes BAR `index` with decoding off, and puts everything back. (Before it is used, a BAR above
// 4 GiB is to be mapped: lib/paging.h.) False past the last register or in
// the upper half of a 64-bit BAR; true with size 0 for one that is not implemented.
bool ReadBar(const PciFunction& function, unsigned index, Bar* bar);
unsigned BarRegisters(const PciFunction& function);

// Where the capability starts, or 0. The walks are bounded: 48 and 256 steps.
unsigned FindCapability(Bdf bdf, uint8_t id);
unsigned FindExtendedCapability(Bdf bdf, uint16_t id);

template <typename Visit>
void ForEachCapability(Bdf bdf, Visit visit);  // visit(uint8_t id, unsigned offset)
template <typename Visit>
void ForEachExtendedCapability(Bdf bdf, Visit visit);  // visit(uint16_t id, unsigned offset)

// The bridge whose bus `function` is on; false where that is a root bus.
bool FindBridgeAbove(const PciFunction& function, Bdf* bridge);

// ---------------------------------------------------------------------------------------------

void PciBusRange(unsigned* first, unsigned* last);

template <typename Visit>
void ForEachFunction(Visit visit) {
  unsigned first, last;
  PciBusRange(&first, &last);
  for (unsigned bus = first; bus <= last; ++bus) {
    for (unsigned slot = 0; slot < 256; ++slot) {
      const Bdf bdf{static_cast<uint8_t>(bus), static_cast<uint8_t>(slot >> 3),
                    static_cast<uint8_t>(slot & 7)};
      PciFunction function;
      const bool present = ReadFunction(bdf, &function);
      if (present) visit(static_cast<const PciFunction&>(function));
      // Functions 1 to 7 are looked at only behind a function 0 that says there are more.
      const bool more = present && (ReadConfig8(bdf, pci::kHeaderType) & pci::kMultiFunction);
      if (bdf.function == 0 && !more) slot |= 7;
    }
  }
}

template <typename Visit>
void ForEachCapability(Bdf bdf, Visit visit) {
  if (!(ReadConfig16(bdf, pci::kStatus) & pci::kStatusCapabilities)) return;
  unsigned at = ReadConfig8(bdf, pci::kCapabilities) & ~3u;
  for (unsigned i = 0; i < 48 && at >= 0x40; ++i) {
    const uint16_t header = ReadConfig16(bdf, at);
    if (header == 0xffff) return;
    visit(static_cast<uint8_t>(header), at);
    at = header >> 8 & ~3u;
  }
}

template <typename Visit>
void ForEachExtendedCapability(Bdf bdf, Visit visit) {
  if (!HasEcam()) return;
  unsigned at = pci::kExtended;
  for (unsigned i = 0; i < 256 && at >= pci::kExtended; ++i) {
    const uint32_t header = ReadConfig32(bdf, at);
    if (header == 0 || header == pci::kAbsent) return;
    visit(static_cast<uint16_t>(header), at);
    at = header >> 20 & ~3u;
  }
}

}  // namespace guest
