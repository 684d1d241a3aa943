#include "lib/pci.h"

#include "lib/io.h"
#include "lib/platform.h"

namespace guest {
namespace {

constexpr uint16_t kAddressPort = 0xcf8;
constexpr uint16_t kDataPort = 0xcfc;

void SelectByPorts(Bdf bdf, unsigned offset) {
  Out32(kAddressPort, 1u << 31 | static_cast<uint32_t>(bdf.bus) << 16 |
                          static_cast<uint32_t>(bdf.device) << 11 |
                          static_cast<uint32_t>(bdf.function) << 8 | (offset & 0xfc));
}

uint64_t EcamAddress(Bdf bdf, unsigned offset) {
  const auto bus = static_cast<uint64_t>(bdf.bus - platform.first_bus);
  return platform.ecam.start + (bus << 20 | static_cast<uint64_t>(bdf.device) << 15 |
                                static_cast<uint64_t>(bdf.function) << 12 | offset);
}

bool InEcam(Bdf bdf, unsigned offset) {
  return bdf.bus >= platform.first_bus && offset < 4096 &&
         platform.ecam.Contains(EcamAddress(bdf, offset));
}

ConfigMechanism Best() {
  return HasEcam() ? ConfigMechanism::kEcam : ConfigMechanism::kPorts;
}

}  // namespace

bool HasEcam() {
  return platform.ecam.size != 0;
}

uint32_t ReadConfig(ConfigMechanism mechanism, Bdf bdf, unsigned offset, unsigned width) {
  if (mechanism == ConfigMechanism::kEcam) {
    if (!InEcam(bdf, offset)) return pci::kAbsent;
    const uint64_t address = EcamAddress(bdf, offset);
    if (width == 1) return Read<uint8_t>(address);
    if (width == 2) return Read<uint16_t>(address);
    return Read<uint32_t>(address);
  }
  if (offset > 255) return pci::kAbsent;
  SelectByPorts(bdf, offset);
  const auto port = static_cast<uint16_t>(kDataPort + (offset & 3));
  if (width == 1) return In8(port);
  if (width == 2) return In16(port);
  return In32(port);
}

void WriteConfig(ConfigMechanism mechanism, Bdf bdf, unsigned offset, unsigned width,
                 uint32_t value) {
  if (mechanism == ConfigMechanism::kEcam) {
    if (!InEcam(bdf, offset)) return;
    const uint64_t address = EcamAddress(bdf, offset);
    if (width == 1) return Write(address, static_cast<uint8_t>(value));
    if (width == 2) return Write(address, static_cast<uint16_t>(value));
    return Write(address, value);
  }
  if (offset > 255) return;
  SelectByPorts(bdf, offset);
  const auto port = static_cast<uint16_t>(kDataPort + (offset & 3));
  if (width == 1) return Out8(port, static_cast<uint8_t>(value));
  if (width == 2) return Out16(port, static_cast<uint16_t>(value));
  Out32(port, value);
}

uint8_t ReadConfig8(Bdf bdf, unsigned offset) {
  return static_cast<uint8_t>(ReadConfig(Best(), bdf, offset, 1));
}
uint16_t ReadConfig16(Bdf bdf, unsigned offset) {
  return static_cast<uint16_t>(ReadConfig(Best(), bdf, offset, 2));
}
uint32_t ReadConfig32(Bdf bdf, unsigned offset) {
  return ReadConfig(Best(), bdf, offset, 4);
}
void WriteConfig8(Bdf bdf, unsigned offset, uint8_t value) {
  WriteConfig(Best(), bdf, offset, 1, value);
}
void WriteConfig16(Bdf bdf, unsigned offset, uint16_t value) {
  WriteConfig(Best(), bdf, offset, 2, value);
}
void WriteConfig32(Bdf bdf, unsigned offset, uint32_t value) {
  WriteConfig(Best(), bdf, offset, 4, value);
}

bool ReadFunction(Bdf bdf, PciFunction* function) {
  const uint32_t id = ReadConfig32(bdf, pci::kId);
  if ((id & 0xffff) == 0xffff) return false;
  const uint32_t class_code = ReadConfig32(bdf, pci::kClass);
  function->bdf = bdf;
  function->vendor = static_cast<uint16_t>(id);
  function->device = static_cast<uint16_t>(id >> 16);
  function->class_code = class_code >> 8;
  function->revision = static_cast<uint8_t>(class_code);
  function->header_type = ReadConfig8(bdf, pci::kHeaderType) & pci::kHeaderTypeMask;
  return true;
}

bool FindFunction(uint16_t vendor, uint16_t device, PciFunction* function, unsigned skip) {
  bool found = false;
  ForEachFunction([&](const PciFunction& f) {
    if (found) return;
    if (vendor != 0xffff && f.vendor != vendor) return;
    if (device != 0xffff && f.device != device) return;
    if (skip > 0) {
      --skip;
      return;
    }
    *function = f;
    found = true;
  });
  return found;
}

bool FindBridgeAbove(const PciFunction& function, Bdf* bridge) {
  bool found = false;
  ForEachFunction([&](const PciFunction& above) {
    if (above.header_type != pci::kBridge ||
        ReadConfig8(above.bdf, pci::kSecondaryBus) != function.bdf.bus) return;
    *bridge = above.bdf;
    found = true;
  });
  return found;
}

void PciBusRange(unsigned* first, unsigned* last) {
  *first = platform.first_bus;
  *last = platform.last_bus;
}

unsigned BarRegisters(const PciFunction& function) {
  return function.header_type == 0 ? 6 : function.header_type == 1 ? 2 : 0;
}

bool ReadBar(const PciFunction& function, unsigned index, Bar* bar) {
  const unsigned registers = BarRegisters(function);
  if (index >= registers) return false;
  const Bdf bdf = function.bdf;
  for (unsigned i = 0; i < index; ++i) {  // not the upper half of an earlier one?
    const bool wide = (ReadConfig32(bdf, pci::kBar0 + i * 4) & 7) == 4;
    if (wide && ++i == index) return false;
  }
  const unsigned offset = pci::kBar0 + index * 4;
  const uint16_t command = ReadConfig16(bdf, pci::kCommand);
  const uint32_t low = ReadConfig32(bdf, offset);
  bar->index = index;
  bar->io = low & 1;
  bar->wide = (low & 7) == 4 && index + 1 < registers;
  bar->prefetchable = !bar->io && (low & 8);
  const uint32_t high = bar->wide ? ReadConfig32(bdf, offset + 4) : 0;

  const auto off = static_cast<uint16_t>(command & ~(pci::kCommandIo | pci::kCommandMemory));
  if (off != command) WriteConfig16(bdf, pci::kCommand, off);
  WriteConfig32(bdf, offset, 0xffffffff);
  if (bar->wide) WriteConfig32(bdf, offset + 4, 0xffffffff);
  const uint32_t low_mask = ReadConfig32(bdf, offset) & (bar->io ? ~3u : ~15u);
  const uint32_t high_mask = bar->wide ? ReadConfig32(bdf, offset + 4) : 0xffffffff;
  WriteConfig32(bdf, offset, low);
  if (bar->wide) WriteConfig32(bdf, offset + 4, high);
  if (off != command) WriteConfig16(bdf, pci::kCommand, command);

  uint64_t mask = static_cast<uint64_t>(high_mask) << 32 | low_mask;
  if (bar->io && low_mask != 0) mask |= 0xffff0000;  // the upper 16 bits may be hard zero
  if (low_mask == 0 && (!bar->wide || high_mask == 0)) mask = 0;
  bar->range.start = static_cast<uint64_t>(high) << 32 | (low & (bar->io ? ~3u : ~15u));
  bar->range.size = mask == 0 ? 0 : ~mask + 1;
  return true;
}

unsigned FindCapability(Bdf bdf, uint8_t id) {
  unsigned found = 0;
  ForEachCapability(bdf, [&](uint8_t each, unsigned offset) {
    if (each == id && found == 0) found = offset;
  });
  return found;
}

unsigned FindExtendedCapability(Bdf bdf, uint16_t id) {
  unsigned found = 0;
  ForEachExtendedCapability(bdf, [&](uint16_t each, unsigned offset) {
    if (each == id && found == 0) found = offset;
  });
  return found;
}

}  // namespace guest
