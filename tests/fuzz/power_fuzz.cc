// Fuzzes the small ports of a machine as they lie on its port bus: sleep registers, resets, debug
// exit and boot marker. Each must fire exactly when a model of the accesses says so.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "devices/acpi_power.h"
#include "devices/boot_marker.h"
#include "devices/bus.h"
#include "devices/debug_exit.h"
#include "devices/pci_access.h"
#include "tests/fuzz/fuzz_input.h"

namespace crossbar {
namespace {

constexpr uint64_t kKeyboard = 0x64, kMarker = 0x80, kExit = 0xf4, kSleepControl = 0x600,
                   kSleepStatus = 0x601, kCf8 = 0xcf8;
constexpr uint8_t kS5 = 5;

struct Events {
  uint64_t power_offs = 0;
  uint64_t resets = 0;
  std::vector<int> exits;
  bool operator==(const Events&) const = default;
};

class Machine {
 public:
  Machine() {
    const auto add = [this](uint64_t port, uint64_t ports, std::shared_ptr<BusDevice> device) {
      CHECK(bus_.Add(port, ports, std::move(device)).has_value(), "port {:#x}", port);
    };
    const auto reset = [this] { ++seen_.resets; };
    add(kSleepControl, SleepControl::kPorts,
        std::make_shared<SleepControl>(kS5, [this] { ++seen_.power_offs; }));
    add(kSleepStatus, SleepStatus::kPorts, std::make_shared<SleepStatus>());
    add(kKeyboard, KeyboardReset::kPorts, std::make_shared<KeyboardReset>(reset));
    add(kCf8, Cf8Ports::kPorts, std::make_shared<Cf8Ports>(root_, reset_control_));
    add(kExit, DebugExit::kPorts,
        std::make_shared<DebugExit>([this](int status) { seen_.exits.push_back(status); }));
    add(kMarker, BootMarker::kPorts, marker_);
  }

  void Step(fuzz::FuzzInput& input) {
    constexpr uint64_t kPorts[] = {kKeyboard,     kMarker,      kExit,
                                   kSleepControl, kSleepStatus, kCf8 + 1};
    uint64_t port = input.Number<uint16_t>();
    if (port % 8 != 0) {
      const uint64_t near = kPorts[input.InRange(0, std::size(kPorts) - 1)];
      port = near + input.InRange(0, 9) - 5;
    }
    const unsigned size = input.InRange(1, 8);
    std::array<uint8_t, 8> data = {};
    if (input.InRange(0, 3) == 0) {
      cursor_.Read(port, data.data(), size);
      for (unsigned i = 0; i < size; ++i) CheckByteRead(port + i, data[i]);
    } else {
      const auto value = input.Number<uint64_t>();
      std::memcpy(data.data(), &value, 8);
      Expect(port, size, data.data());
      cursor_.Write(port, data.data(), size);
    }
    CHECK(seen_ == expected_, "port {:#x} size {}: {:#x}", port, size, data[0]);
    const BootMarker::Marks marks = marker_->Snapshot();
    CHECK(marks.count == marks_.size(), "{} marks", marks.count);
    CHECK(marks.first.size() == std::min(BootMarker::kMarks, marks_.size()));
    for (size_t i = 0; i < marks.first.size(); ++i) CHECK(marks.first[i].value == marks_[i]);
  }

 private:
  void CheckByteRead(uint64_t port, uint8_t value) const {
    if (port == kSleepControl) CHECK((value & 0xe3) == 0, "{:#x}", value);
    if (port == kSleepStatus) CHECK(value == 0, "{:#x}", value);
    if (port == kKeyboard) CHECK(value == 0xfd, "{:#x}", value);
    if (port == kMarker) CHECK(value == (marks_.empty() ? 0 : marks_.back()));
    if (port >= kExit && port < kExit + 4) CHECK(value == 0, "{:#x}", value);
  }

  // Ports of several bytes take an access that lies within them whole, all others byte by byte.
  void Expect(uint64_t port, unsigned size, const uint8_t* data) {
    const auto within = [&](uint64_t start, uint64_t ports) {
      return std::has_single_bit(size) && port >= start && port + size <= start + ports;
    };
    if (within(kExit, 4)) {
      ExpectExit(data[0]);
      return;
    }
    const bool whole_cf8 = within(kCf8, 8);
    for (unsigned i = 0; i < size; ++i) {
      const uint64_t at = port + i;
      if (at == kKeyboard && data[i] == 0xfe) ++expected_.resets;
      if (at == kCf8 + 1 && (!whole_cf8 || size == 1) && (data[i] & 4)) ++expected_.resets;
      if (at == kMarker) marks_.push_back(data[i]);
      if (at == kSleepControl && (data[i] & 0x3c) == (kS5 << 2 | 0x20)) ++expected_.power_offs;
      if (at >= kExit && at < kExit + 4) ExpectExit(data[i]);
    }
  }

  // The status is 8 bits of (value << 1 | 1): bits above the lowest byte never matter.
  void ExpectExit(uint8_t value) { expected_.exits.push_back((value * 2 + 1) % 256); }

  Events seen_;
  Events expected_;
  PciRoot root_{0, 0};
  ResetControl reset_control_{[this] { ++seen_.resets; }};
  std::vector<uint8_t> marks_;  // as expected
  std::shared_ptr<BootMarker> marker_ = std::make_shared<BootMarker>();
  TrapBus bus_;
  TrapBus::Cursor cursor_{bus_};
};

}  // namespace
}  // namespace crossbar

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  crossbar::log::SetLevel(crossbar::LogLevel::kError);
  crossbar::fuzz::FuzzInput input(data, size);
  crossbar::Machine machine;
  for (int i = 0; i < 1000 && !input.empty(); ++i) machine.Step(input);
  return 0;
}
