// pci_scan: what is on the PCI buses, a line per function, by ECAM and by ports 0xcf8/0xcfc.
// Without a device tree there is no ECAM, and the ports stand alone.
//
//   00:01.0 1234:11e8 rev 10 class 00ff00  BAR0 mem32 0xc0000000 1M  caps 01@40 05@50  ext 0001@100
//   00:02.0 1b36:000c rev 00 class 060400  bus 01 to 01  caps 10@40
//
// Check numbers:
//   1  a host bridge is at 00:00.0
//   2  both mechanisms agree on every dword of a function's first 256 bytes
//   3  and on its bytes and words
//   4  a function that is not there reads all ones, everywhere, and swallows writes
//   5  the read-only identification does not change when written
//   6  a BAR's size is a power of two, and the BAR holds a multiple of it
//   7  sizing a BAR left the register as it was
//   8  with the address register's enable bit off, the data port is no configuration access

#include <stdint.h>

#include <initializer_list>

#include "lib/check.h"
#include "lib/guest.h"
#include "lib/io.h"
#include "lib/pci.h"
#include "lib/print.h"

namespace guest {
namespace {

constexpr uint32_t kHostBridge = 0x060000;
constexpr auto kPorts = ConfigMechanism::kPorts;
constexpr auto kEcam = ConfigMechanism::kEcam;

struct Line {
  char text[480];
  size_t length = 0;

  [[gnu::format(printf, 2, 3)]] void Add(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    length += FormatV(text + length, sizeof(text) - length, format, arguments);
    va_end(arguments);
    if (length > sizeof(text) - 1) length = sizeof(text) - 1;
  }
  void AddSize(uint64_t size) {
    static constexpr char kUnits[] = " KMGT";
    unsigned unit = 0;
    for (; unit < 4 && size % 1024 == 0 && size > 0; ++unit) size /= 1024;
    if (unit == 0) {
      Add(" %lu", size);
    } else {
      Add(" %lu%c", size, kUnits[unit]);
    }
  }
};

void AddBars(Line& line, const PciFunction& f) {
  for (unsigned i = 0; i < BarRegisters(f); ++i) {
    const uint32_t before = ReadConfig32(f.bdf, pci::kBar0 + i * 4);
    Bar bar;
    if (!ReadBar(f, i, &bar)) continue;
    const uint32_t after = ReadConfig32(f.bdf, pci::kBar0 + i * 4);
    CHECK(7, before == after, "BAR%u was 0x%x, is 0x%x", i, before, after);
    if (bar.range.size == 0) continue;
    const uint64_t size = bar.range.size;
    CHECK(6, (size & (size - 1)) == 0, "BAR%u size 0x%lx", i, size);
    CHECK(6, (bar.range.start & (size - 1)) == 0, "BAR%u at 0x%lx", i, bar.range.start);
    line.Add("  BAR%u %s%s 0x%lx", i,
             bar.io     ? "io"
             : bar.wide ? "mem64"
                        : "mem32",
             bar.prefetchable ? "p" : "", bar.range.start);
    line.AddSize(size);
  }
}

void PrintFunction(const PciFunction& f) {
  Line line;
  line.Add("%02x:%02x.%u %04x:%04x rev %02x class %06x", f.bdf.bus, f.bdf.device, f.bdf.function,
           f.vendor, f.device, f.revision, f.class_code);
  AddBars(line, f);
  if (f.header_type == 1)
    line.Add("  bus %02x to %02x", ReadConfig8(f.bdf, pci::kSecondaryBus),
             ReadConfig8(f.bdf, pci::kSubordinateBus));
  const char* title = "  caps";
  ForEachCapability(f.bdf, [&](uint8_t id, unsigned offset) {
    line.Add("%s %02x@%x", title, id, offset);
    title = "";
  });
  title = "  ext";
  ForEachExtendedCapability(f.bdf, [&](uint16_t id, unsigned offset) {
    line.Add("%s %04x@%x", title, id, offset);
    title = "";
  });
  Print("%s\n", line.text);
}

void CheckMechanismsAgree(Bdf bdf) {
  for (unsigned offset = 0; offset < 256; offset += 4) {
    const uint32_t ports = ReadConfig(kPorts, bdf, offset, 4);
    const uint32_t ecam = ReadConfig(kEcam, bdf, offset, 4);
    CHECK(2, ports == ecam, "offset 0x%x: ports 0x%x, ECAM 0x%x", offset, ports, ecam);
  }
  for (unsigned offset = 0; offset < 64; ++offset) {
    const uint32_t dword = ReadConfig(kEcam, bdf, offset & ~3u, 4) >> (offset & 3) * 8;
    for (const ConfigMechanism by : {kPorts, kEcam}) {
      CHECK(3, ReadConfig(by, bdf, offset, 1) == (dword & 0xff), "offset 0x%x", offset);
      if (offset % 2 != 0) continue;
      CHECK(3, ReadConfig(by, bdf, offset, 2) == (dword & 0xffff), "offset 0x%x", offset);
    }
  }
}

void CheckReadOnly(ConfigMechanism mechanism, Bdf bdf) {
  for (const unsigned offset : {pci::kId, pci::kClass}) {
    const uint32_t before = ReadConfig(mechanism, bdf, offset, 4);
    WriteConfig(mechanism, bdf, offset, 4, ~before);
    WriteConfig(mechanism, bdf, offset, 1, ~before & 0xff);
    const uint32_t after = ReadConfig(mechanism, bdf, offset, 4);
    CHECK(5, before == after, "offset 0x%x was 0x%x, is 0x%x", offset, before, after);
  }
}

void CheckAbsent(ConfigMechanism mechanism, Bdf bdf) {
  for (const unsigned offset : {0x00u, 0x04u, 0x10u, 0x34u, 0xfcu, 0x100u, 0xffcu}) {
    if (mechanism == kPorts && offset > 255) continue;
    WriteConfig(mechanism, bdf, offset, 4, 0);
    const uint32_t value = ReadConfig(mechanism, bdf, offset, 4);
    CHECK(4, value == pci::kAbsent, "%02x:%02x.%u offset 0x%x: 0x%x", bdf.bus, bdf.device,
          bdf.function, offset, value);
  }
}

// Some functions that are not there: next to ones that are, and on the last bus.
void CheckSomeAbsent(ConfigMechanism mechanism) {
  unsigned first, last;
  PciBusRange(&first, &last);
  unsigned checked = 0;
  for (const unsigned bus : {first, last}) {
    for (unsigned device = 0; device < 32; ++device) {
      const Bdf bdf{static_cast<uint8_t>(bus), static_cast<uint8_t>(device), 0};
      PciFunction f;
      if (ReadFunction(bdf, &f)) continue;
      CheckAbsent(mechanism, bdf);
      CheckAbsent(mechanism, {bdf.bus, bdf.device, 7});
      ++checked;
    }
  }
  CHECK(4, checked > 0, "no empty slot to look at");
}

void CheckDisabledPorts() {
  Out32(0xcf8, 0);  // 00:00.0 offset 0, but not enabled
  const uint32_t value = In32(0xcfc);
  CHECK(8, value == pci::kAbsent, "0x%x", value);
}

}  // namespace

void GuestMain() {
  PciFunction bridge;
  CHECK(1, ReadFunction({}, &bridge), "nothing at 00:00.0");
  CHECK(1, bridge.class_code == kHostBridge, "class 0x%06x at 00:00.0", bridge.class_code);
  unsigned count = 0;
  ForEachFunction([&](const PciFunction& f) {
    ++count;
    PrintFunction(f);
    if (HasEcam()) CheckMechanismsAgree(f.bdf);
    CheckReadOnly(kPorts, f.bdf);
    if (HasEcam()) CheckReadOnly(kEcam, f.bdf);
  });
  CheckSomeAbsent(kPorts);
  if (HasEcam()) CheckSomeAbsent(kEcam);
  CheckDisabledPorts();
  Print("%u functions, by %s\n", count, HasEcam() ? "ECAM and ports" : "ports only");
}

}  // namespace guest
