// PlatformInfo: what the guest's machine looks like, decided once at start.
//
// The ACPI writer (boot/acpi.h), the device-tree writer (boot/fdt.h), the PCI code's caller and
// vmm/ all read this one value, so that no two descriptions can disagree. A plain value; made by
// MakeX86Platform before anything else exists and constant afterwards.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "memory/address.h"

namespace crossbar {

struct PlatformInfo {
  unsigned physical_address_bits = 0;  // guest MAXPHYADDR
  std::vector<uint32_t> cpu_ids;       // local APIC ids; index is the vCPU number, 0 boots
  std::vector<GuestRange> ram;         // ascending, disjoint

  struct Pci {
    GuestRange ecam;  // 1 MiB per bus, from first_bus
    uint8_t first_bus = 0;
    uint8_t last_bus = 0;
    GuestRange window32;  // below 4 GiB
    GuestRange window64;  // above all RAM
    // How both descriptions call window64. A guest puts no non-prefetchable BAR into a prefetchable
    // window, so with true those have only window32.
    bool window64_prefetchable = false;
    uint16_t io_base = 0;  // I/O window on the PIO space
    uint32_t io_size = 0;
    std::array<uint32_t, 4> intx_gsi{};  // GSI of root-bus INTx swizzle slot 0..3: slot n of device
                                         // d, pin p (0 = INTA) is (d + p) % 4
  } pci;

  struct Serial {
    uint16_t port = 0;
    uint32_t gsi = 0;
    uint32_t clock_hz = 0;
  } serial;

  struct Power {  // ACPI 6.5, 4.8.3.7: the hardware-reduced sleep registers
    uint16_t sleep_control_port = 0;
    uint16_t sleep_status_port = 0;
    uint8_t s5_sleep_type = 0;  // SLP_TYP of \_S5
    uint16_t reset_port = 0;    // FADT RESET_REG
    uint8_t reset_value = 0;
  } power;

  uint16_t debug_exit_port = 0;   // QEMU isa-debug-exit convention, 4 ports wide
  uint16_t boot_marker_port = 0;  // POST code port

  Gpa local_apic;
  Gpa ioapic;
  uint32_t ioapic_pins = 0;
};

struct X86PlatformRequest {
  uint64_t memory_bytes = 0;  // multiple of 4 KiB
  unsigned cpus = 1;
  unsigned physical_address_bits = 0;  // of the host CPU as KVM offers it
  // What the 64-bit BARs of the devices may need: window64 is the lowest gap above RAM that has so
  // much, or else the largest one. Low, because a peer with a narrow DMA mask reaches no high BAR.
  uint64_t window64_bytes = 512 * kGiB;
  // The highest bus there will ever be. Linux reads a register of every slot of every bus up to it
  // at boot, each time an exit or two, to find host bridges that ACPI did not tell of.
  uint8_t last_bus = 0;
  // Where neither RAM nor a PCI window may be: what an IOMMU does not translate, bus windows of an
  // unguarded host hierarchy. In any order, may overlap; rounded outward to 2 MiB.
  std::vector<GuestRange> unusable{};
};

// x86 constants that no request changes.
inline constexpr uint64_t kX86LeastMemory = 2 * kMiB;
// MADT's local APIC structure holds 8-bit ids, of which 255 means all; more needs x2APIC entries.
inline constexpr unsigned kX86MostCpus = 254;
inline constexpr GuestRange kX86PciHole{Gpa(0xc0000000), 0x40000000};  // 3-4 GiB: no RAM here
inline constexpr GuestRange kX86HyperTransport{Gpa(0xfd'0000'0000), 0x3'0000'0000};
// KVM's own pages on Intel without unrestricted guest, from vmm to KVM_SET_IDENTITY_MAP_ADDR and
// KVM_SET_TSS_ADDR. Nothing else is there.
inline constexpr GuestRange kX86IdentityMap{Gpa(0xfeffc000), 0x1000};
inline constexpr GuestRange kX86TaskState{Gpa(0xfeffd000), 0x3000};

// Lays out RAM (below 3 GiB and from 4 GiB, around AMD's HyperTransport hole), ECAM and the PCI
// windows. Error: the memory does not fit below MAXPHYADDR with a 64-bit window beside it, or is
// too little to boot; too many CPUs; no room for what must be at fixed addresses.
Result<PlatformInfo> MakeX86Platform(const X86PlatformRequest& request);

}  // namespace crossbar
