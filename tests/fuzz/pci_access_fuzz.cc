// Fuzzes configuration accesses through the MMIO and the port bus against a byte-wise model: what
// is read-only never changes, absent functions are all ones, ECAM and 0xcf8 agree, and no function
// ever sees an access that is not natural. Two functions are behind a root port, and are reached as its
// registers say.
#include <linux/pci_regs.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>

#include "base/check.h"
#include "devices/pci_access.h"
#include "devices/pci_root.h"
#include "devices/pci_root_port.h"
#include "tests/fuzz/fuzz_input.h"

namespace crossbar {
namespace {

constexpr uint8_t kFirstBus = 0;
constexpr uint8_t kLastBus = 3;
constexpr uint64_t kEcamBase = 0xe0000000;
constexpr uint32_t kCf8 = 0xcf8;
constexpr unsigned kPort = 3 * 8;  // place of the root port on the root bus

// The three masks of a function, spelled out byte by byte.
struct ModelFunction {
  std::array<uint8_t, 4096> bytes, writable, clearable;

  void Write(unsigned at, uint8_t value) {
    for (unsigned bit = 1; bit < 256; bit <<= 1) {
      if (clearable[at] & bit) {
        if (value & bit) bytes[at] &= static_cast<uint8_t>(~bit);
      } else if (writable[at] & bit) {
        bytes[at] = static_cast<uint8_t>((bytes[at] & ~bit) | (value & bit));
      }
    }
  }
};

class Function : public PciFunction {
 public:
  explicit Function(const PciConfigSpace& config) : config_(config) {}
  uint32_t ReadConfig(uint16_t offset, unsigned size) override {
    CheckNatural(offset, size);
    return config_.Read(offset, size);
  }
  void WriteConfig(uint16_t offset, unsigned size, uint32_t value) override {
    CheckNatural(offset, size);
    CHECK(value <= AllOnes(size), "{:#x} in {} bytes", value, size);
    config_.Write(offset, size, value);
  }
  void Reset() override {}

 private:
  static void CheckNatural(uint16_t offset, unsigned size) {
    CHECK(size == 1 || size == 2 || size == 4, "size {}", size);
    CHECK(offset % size == 0 && offset + size <= 4096, "offset {:#x} size {}", offset, size);
  }
  PciConfigSpace config_;
};

// One of a few functions with random contents and masks, made once: the same thing said twice.
struct Kind {
  ModelFunction model;
  PciConfigSpace config;
};

Kind MakeKind(uint32_t seed) {
  Kind kind;
  std::minstd_rand random(seed);
  for (uint16_t at = 0; at < 4096; ++at) {
    const auto contents = static_cast<uint8_t>(random() >> 8);
    const auto mask = static_cast<uint8_t>(random() >> 8);
    const unsigned choice = at == PCI_HEADER_TYPE ? 3 : random() % 4;
    const uint8_t writable = choice == 0 ? mask : choice != 3 ? 0xff : 0;
    const uint8_t clearable = choice == 2 ? mask : 0;
    kind.model.bytes[at] = at == PCI_HEADER_TYPE ? 0 : contents;
    kind.model.writable[at] = writable;
    kind.model.clearable[at] = clearable;
    kind.config.Set<uint8_t>(at, kind.model.bytes[at]);
    kind.config.SetWritable<uint8_t>(at, writable);
    kind.config.SetWriteOneToClear<uint8_t>(at, clearable);
  }
  return kind;
}

const Kind& PickKind(unsigned choice) {
  static const std::array<Kind, 4> kKinds = {MakeKind(1), MakeKind(2), MakeKind(3), MakeKind(4)};
  return kKinds[choice % kKinds.size()];
}

// The root port, with the bits spelled out that can be written.
ModelFunction MakePort(PciRootPort& port) {
  ModelFunction model = {};
  for (uint16_t at = 0; at < 4096; ++at) model.bytes[at] = static_cast<uint8_t>(port.ReadConfig(at, 1));
  const auto writable = [&](unsigned at, uint64_t mask, unsigned size) {
    for (unsigned i = 0; i < size; ++i) model.writable[at + i] = static_cast<uint8_t>(mask >> (8 * i));
  };
  const unsigned express = model.bytes[PCI_CAPABILITY_LIST];
  writable(PCI_COMMAND, 0x147, 2);
  writable(PCI_PRIMARY_BUS, 0xffffff, 3);
  writable(PCI_IO_BASE, 0xf0f0, 2);
  writable(PCI_MEMORY_BASE, 0xfff0fff0fff0fff0, 8);  // and the prefetchable window
  writable(PCI_PREF_BASE_UPPER32, ~0ull, 8);
  writable(PCI_BRIDGE_CONTROL, 0x43, 2);
  writable(express + PCI_EXP_DEVCTL, 0xf, 2);
  writable(express + PCI_EXP_LNKCTL, 0x10, 2);
  writable(express + PCI_EXP_RTCTL, 0x7, 2);
  return model;
}

class Machine {
 public:
  Machine() {
    CHECK(root_.root_bus().Add({kPort / 8, 0}, port_).has_value());
    models_.emplace(kPort, MakePort(*port_));
    for (const uint8_t function : {uint8_t{0}, uint8_t{1}}) {
      const Kind& kind = PickKind(function);
      CHECK(port_->bus().Add({0, function}, std::make_shared<Function>(kind.config)).has_value());
      behind_.emplace(function, kind.model);
    }
    CHECK(mmio_.Add(kEcamBase, ecam_->size(), ecam_).has_value());
    CHECK(ports_.Add(kCf8, Cf8Ports::kPorts, cf8_).has_value());
  }

  void Step(fuzz::FuzzInput& input) {
    const uint64_t ecam_offset = EcamOffset(input);
    const unsigned size = input.InRange(1, 8);
    switch (input.InRange(0, 9)) {
      case 0:
        AddOrRemove(input);
        break;
      case 1:
      case 2:
        EcamRead(ecam_offset, size);
        break;
      case 3:
      case 4:
      case 5:
        EcamWrite(ecam_offset, size, input.Number<uint64_t>());
        break;
      case 6:
        PortRead(input.InRange(kCf8 - 4, kCf8 + 11));
        break;
      case 7:
        cf8_->Reset();
        address_ = 0;
        break;
      default:
        PortWrite(input, 0x80000000 | static_cast<uint32_t>(ecam_offset >> 4));
        break;
    }
    CheckAddressRegister();
    CompareAccessMethods(ecam_offset);
    CheckAddressRegister();
    CHECK(resets_ == expected_resets_, "{} resets, not {}", resets_, expected_resets_);
  }

 private:
  // Mostly where functions are, sometimes anywhere in the window or around it.
  static uint64_t EcamOffset(fuzz::FuzzInput& input) {
    const auto raw = input.Number<uint32_t>();
    if (raw & 0x80000000) return raw % ((kLastBus + 2) << 20);
    if (raw & 0x40000000) return kPort << 12 | (raw & 0x7f);
    if (raw & 0x20000000) return (raw >> 8 & 0x300000) | (raw & 0x1fff);  // what may be behind the port
    return raw & 0xbfff;  // devices 0 and 1
  }

  using Models = std::map<unsigned, ModelFunction>;  // by device * 8 + function

  bool LinkIsUp() const {
    const auto& bytes = models_.at(kPort).bytes;
    return !(bytes[PCI_BRIDGE_CONTROL] & PCI_BRIDGE_CTL_BUS_RESET) &&
           !(bytes[bytes[PCI_CAPABILITY_LIST] + PCI_EXP_LNKCTL] & PCI_EXP_LNKCTL_LD);
  }

  // The models on bus `bus`; null where no such bus is reached.
  Models* Bus(unsigned bus) {
    if (bus == 0) return &models_;
    const auto& bytes = models_.at(kPort).bytes;
    const bool led_to = bus == bytes[PCI_SECONDARY_BUS] && bus <= bytes[PCI_SUBORDINATE_BUS];
    return led_to && LinkIsUp() ? &behind_ : nullptr;
  }

  // The function at this place of ECAM; null where there is none.
  ModelFunction* At(uint64_t ecam_offset) {
    if (ecam_offset >= ecam_->size()) return nullptr;
    Models* const bus = Bus(static_cast<unsigned>(ecam_offset >> 20));
    if (bus == nullptr) return nullptr;
    const auto found = bus->find(ecam_offset >> 12 & 0xff);
    return found == bus->end() ? nullptr : &found->second;
  }

  static bool Multifunction(const Models& models, unsigned device) {
    for (unsigned function = 1; function < 8; ++function) {
      if (models.contains(device * 8 + function)) return true;
    }
    return false;
  }

  uint8_t ModelByte(uint64_t ecam_offset) {
    const ModelFunction* const model = At(ecam_offset);
    if (model == nullptr) return 0xff;
    const unsigned at = ecam_offset & 0xfff;
    const Models& bus = *Bus(static_cast<unsigned>(ecam_offset >> 20));
    const bool several = at == PCI_HEADER_TYPE && Multifunction(bus, ecam_offset >> 15 & 0x1f);
    return model->bytes[at] | (several ? 0x80 : 0);
  }

  void ModelWrite(uint64_t ecam_offset, uint8_t value) {
    ModelFunction* const model = At(ecam_offset);
    if (model == nullptr) return;
    model->Write(ecam_offset & 0xfff, value);
    auto& bytes = models_.at(kPort).bytes;
    uint8_t& status = bytes[bytes[PCI_CAPABILITY_LIST] + PCI_EXP_LNKSTA + 1u];
    constexpr uint8_t kActive = PCI_EXP_LNKSTA_DLLLA >> 8;
    status = static_cast<uint8_t>(LinkIsUp() ? status | kActive : status & ~kActive);
  }

  void AddOrRemove(fuzz::FuzzInput& input) {
    const auto device = static_cast<uint8_t>(input.InRange(0, 2));
    const PciDevfn devfn{device, static_cast<uint8_t>(input.InRange(0, 9))};
    const unsigned index = devfn.device * 8u + devfn.function;
    if (input.InRange(0, 1) == 1) {
      const Kind& kind = PickKind(input.Number<uint8_t>());
      const bool expected = devfn.function < 8 && !models_.contains(index);
      const bool added =
          root_.root_bus().Add(devfn, std::make_shared<Function>(kind.config)).has_value();
      CHECK(added == expected, "{}", devfn);
      if (added) models_.emplace(index, kind.model);
    } else {
      const bool removed = root_.root_bus().Remove(devfn) != nullptr;
      CHECK(removed == (devfn.function < 8 && models_.erase(index) == 1), "{}", devfn);
    }
  }

  void EcamRead(uint64_t offset, unsigned size) {
    std::array<uint8_t, 8> data = {};
    mmio_cursor_.Read(kEcamBase + offset, data.data(), size);
    for (unsigned i = 0; i < size; ++i) {
      CHECK(data[i] == ModelByte(offset + i), "ECAM {:#x}+{}: {:#x}", offset, i, data[i]);
    }
  }

  void EcamWrite(uint64_t offset, unsigned size, uint64_t value) {
    std::array<uint8_t, 8> data;
    std::memcpy(data.data(), &value, 8);
    mmio_cursor_.Write(kEcamBase + offset, data.data(), size);
    for (unsigned i = 0; i < size; ++i) ModelWrite(offset + i, data[i]);
  }

  // Where 0xcfc + `port` leads, by the address register; nothing while it is off.
  std::optional<uint64_t> DataOffset(unsigned port) const {
    if (!(address_ >> 31)) return std::nullopt;
    const uint64_t bus_devfn = (address_ >> 8) & 0xffff;
    return bus_devfn << 12 | (address_ & 0xfc) | port;
  }

  void PortRead(uint64_t port) {
    std::array<uint8_t, 4> data = {};
    ports_cursor_.Read(port, data.data(), 1);
    uint8_t expected = 0xff;
    if (port == kCf8 + 1) expected = reset_control_.Read();
    if (port >= kCf8 + 4 && port < kCf8 + 8) {
      const auto offset = DataOffset(port & 3);
      if (offset) expected = ModelByte(*offset);
    }
    CHECK(data[0] == expected, "port {:#x}: {:#x}, not {:#x}", port, data[0], expected);
  }

  void PortWrite(fuzz::FuzzInput& input, uint32_t likely_value) {
    const uint64_t port = input.InRange(kCf8 - 4, kCf8 + 11);
    const unsigned size = 1u << input.InRange(0, 2);
    const uint32_t value = input.InRange(0, 1) == 1 ? likely_value : input.Number<uint32_t>();
    std::array<uint8_t, 4> data;
    std::memcpy(data.data(), &value, 4);
    // Bytes, where the access leaves the ports; a byte at 0xcf9 is then a byte.
    const bool inside = port >= kCf8 && port + size <= kCf8 + 8;
    if (inside && port == kCf8 && size == 4) address_ = value & 0x80fffffc;
    for (unsigned i = 0; i < size; ++i) {
      const uint64_t at = port + i;
      if (at == kCf8 + 1 && (!inside || size == 1) && (data[i] & 4)) ++expected_resets_;
      if (at < kCf8 + 4 || at >= kCf8 + 8) continue;
      const auto offset = DataOffset(at & 3);
      if (offset) ModelWrite(*offset, data[i]);
    }
    ports_cursor_.Write(port, data.data(), size);
  }

  // Reads one dword both ways, and leaves the address register as it was.
  void CompareAccessMethods(uint64_t ecam_offset) {
    const uint64_t offset = ecam_offset & ~uint64_t{0xf03};
    if (offset >= ecam_->size()) return;
    const auto address = static_cast<uint32_t>(0x80000000 | (offset >> 12) << 8 | (offset & 0xfc));
    std::array<uint8_t, 4> data, by_ecam, by_port;
    std::memcpy(data.data(), &address, 4);
    ports_cursor_.Write(kCf8, data.data(), 4);
    ports_cursor_.Read(kCf8 + 4, by_port.data(), 4);
    mmio_cursor_.Read(kEcamBase + offset, by_ecam.data(), 4);
    CHECK(by_ecam == by_port, "at {:#x}", offset);
    std::memcpy(data.data(), &address_, 4);
    ports_cursor_.Write(kCf8, data.data(), 4);
  }

  void CheckAddressRegister() {
    std::array<uint8_t, 4> data = {};
    ports_cursor_.Read(kCf8, data.data(), 4);
    uint32_t address = 0;
    std::memcpy(&address, data.data(), 4);
    CHECK(address == address_, "{:#x}, not {:#x}", address, address_);
  }

  uint64_t resets_ = 0;
  uint64_t expected_resets_ = 0;
  uint32_t address_ = 0;
  Models models_;  // on the root bus
  Models behind_;  // behind the port

  PciRoot root_{kFirstBus, kLastBus};
  std::shared_ptr<PciRootPort> port_ = std::make_shared<PciRootPort>();
  ResetControl reset_control_{[this] { ++resets_; }};
  std::shared_ptr<EcamWindow> ecam_ = std::make_shared<EcamWindow>(root_);
  std::shared_ptr<Cf8Ports> cf8_ = std::make_shared<Cf8Ports>(root_, reset_control_);
  TrapBus mmio_;
  TrapBus ports_;
  TrapBus::Cursor mmio_cursor_{mmio_};
  TrapBus::Cursor ports_cursor_{ports_};
};

// A configuration space of any contents can be walked and added to: no walk is without end.
void FuzzLists(fuzz::FuzzInput& input) {
  PciConfigSpace config;
  while (!input.empty()) {
    const uint16_t at = input.Number<uint16_t>() & 0xffc;
    config.Set<uint32_t>(at, input.Number<uint32_t>());
  }
  const size_t before = config.Capabilities().size();
  const size_t extended_before = config.ExtendedCapabilities().size();
  CHECK(before <= 48 && extended_before <= 960, "{} {}", before, extended_before);
  const auto added = config.AddCapability(PCI_CAP_ID_VNDR, 8);
  if (added) CHECK(config.FindCapability(PCI_CAP_ID_VNDR).has_value(), "at {:#x}", *added);
  const auto extended = config.AddExtendedCapability(PCI_EXT_CAP_ID_VNDR, 1, 16);
  if (extended) CHECK(config.FindExtendedCapability(PCI_EXT_CAP_ID_VNDR), "at {:#x}", *extended);
}

}  // namespace
}  // namespace crossbar

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  crossbar::fuzz::FuzzInput input(data, size);
  if (input.InRange(0, 7) == 0) {
    crossbar::FuzzLists(input);
    return 0;
  }
  crossbar::Machine machine;
  for (int i = 0; i < 1000 && !input.empty(); ++i) machine.Step(input);
  return 0;
}
