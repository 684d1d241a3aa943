#include "tests/fuzz/load_oracle.h"

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "boot/loader.h"
#include "boot/x86_layout.h"

namespace crossbar::fuzz {
namespace {

constexpr std::string_view kCommandLine = "console=ttyS0 answer=42";

std::vector<std::byte> Pattern(size_t size, uint8_t seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = std::byte(static_cast<uint8_t>(i * 7 + seed));
  return bytes;
}

// Made once: what a load leaves behind is what a guest that reboots leaves behind.
struct Machine {
  Machine() {
    platform.ram = {{Gpa(0), 4 * kMiB}, {Gpa(k4GiB), kMiB}};
    platform.pci.ecam = {Gpa(0xe0000000), 256 * kMiB};
    ram = GuestRam::Create(platform.ram).value();
    CHECK(ram.Write(x86_layout::kLegacyHole.start, hole));
  }

  PlatformInfo platform;
  GuestRam ram;
  const std::array<std::vector<std::byte>, 3> files = {Pattern(0x1801, 1), Pattern(0x20, 2),
                                                       Pattern(0x300, 3)};
  const std::vector<std::byte> hole = Pattern(x86_layout::kLegacyHole.size, 4);
};

bool Holds(const GuestRam& ram, Gpa address, std::span<const std::byte> expected) {
  const auto bytes = ram.At({address, expected.size()});
  return bytes && std::memcmp(bytes->data(), expected.data(), expected.size()) == 0;
}

void CheckLoaded(const Machine& machine, const LoadRequest& request, const LoadedGuest& guest,
                 std::span<const std::byte> kernel) {
  CHECK(machine.ram.At({guest.entry.rip, 1}), "rip {}", guest.entry.rip);
  CHECK(machine.ram.At({guest.kernel.start, 1}) && machine.ram.At({guest.kernel.last(), 1}));
  if (guest.format == KernelFormat::kBzImage)
    CHECK(Holds(machine.ram, guest.kernel.start, kernel.last(guest.kernel.size)));
  for (size_t i = 0; i < guest.modules.size(); ++i) {
    // The initrd, then the module if there is one, then the device tree.
    const auto& expected = machine.files[i == 1 && request.modules.empty() ? 2 : i];
    CHECK(guest.modules[i].size == expected.size());
    CHECK(Holds(machine.ram, guest.modules[i].start, expected), "module {}", i);
  }
  const Gpa strings = x86_layout::kStrings.start;
  const size_t skip =  // a Multiboot kernel's own name stands in front
      guest.format == KernelFormat::kMultiboot ? std::string_view("kernel ").size() : 0;
  CHECK(Holds(machine.ram, strings + skip, std::as_bytes(std::span(kCommandLine))));
}

}  // namespace

void LoadAndCheck(std::span<const std::byte> kernel) {
  static const Machine& machine = *new Machine;
  const MemoryImage image("kernel", kernel);
  const MemoryImage initrd("initrd", machine.files[0]), module("module", machine.files[1]);
  LoadRequest request;
  request.kernel = &image;
  request.initrd = &initrd;
  request.command_line = kCommandLine;
  request.rsdp = x86_layout::kAcpiTables.start;
  request.device_tree = machine.files[2];
  // A bzImage takes no modules, and every second input goes without.
  if (kernel.size() % 2 == 0) request.modules = {{&module, "argument"}};
  const auto guest = LoadGuest(machine.ram, machine.platform, request);
  if (guest) {
    CheckLoaded(machine, request, *guest, kernel);
  } else {
    const std::string error = guest.error().ToString();
    CHECK(!error.empty() && error.find('\n') == error.npos, "{}", error);
  }
  CHECK(Holds(machine.ram, x86_layout::kLegacyHole.start, machine.hole),
        "the ACPI tables are gone");
}

}  // namespace crossbar::fuzz
