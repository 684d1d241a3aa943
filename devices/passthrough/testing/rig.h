// PassthroughRig: one PassthroughFunction between fakes of everything around it.
#pragma once

#include <memory>
#include <utility>

#include "devices/passthrough/function.h"
#include "devices/passthrough/testing/fake_device.h"
#include "devices/passthrough/testing/fake_interrupts.h"
#include "memory/testing/heart.h"

namespace crossbar::testing {

struct PassthroughRig {
  static constexpr uint64_t kWindow32 = 0xc0000000;
  static constexpr uint64_t kWindow64 = 0x100000000;

  PassthroughRig() { windows.ports = std::make_shared<PciWindow>(0x1000, 0x1000); }
  ~PassthroughRig() {
    if (function != nullptr) function->Close();
  }

  void Start(PassthroughFunction::Settings settings = {.id = "dev"}) {
    auto made = PassthroughFunction::Create(std::make_unique<FakeBackend>(device), std::move(settings),
                                            Around());
    ASSERT_TRUE(made) << made.error().message();
    function = *std::move(made);
    heart.recorder.Take();
  }
  PassthroughFunction::Surroundings Around() {
    return {heart.space, router, watcher, zaps, windows, {16, 17, 18, 19}};
  }

  uint32_t Read(uint16_t offset, unsigned size) { return function->ReadConfig(offset, size); }
  // What the write made everybody do, in order.
  Events Write(uint16_t offset, unsigned size, uint32_t value) {
    heart.recorder.Take();
    function->WriteConfig(offset, size, value);
    return heart.recorder.Take();
  }
  static uint16_t Bar(unsigned index) {
    return static_cast<uint16_t>(PCI_BASE_ADDRESS_0 + 4 * index);
  }
  // BAR 0 at the start of the 32-bit window, BAR 2 at that of the 64-bit one.
  void Assign() {
    Write(Bar(0), 4, kWindow32);
    Write(Bar(2), 4, static_cast<uint32_t>(kWindow64));
    Write(Bar(3), 4, kWindow64 >> 32);
  }
  void Decode() { Write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY); }

  Heart heart;
  FakeRouter router{heart.recorder};
  FakeWatcher watcher;
  ZapLog zaps;
  FakeDevice device{heart.recorder};
  Bars::Windows windows{{std::make_shared<PciWindow>(kWindow32, 0x20000000),
                         std::make_shared<PciWindow>(kWindow64, 0x100000000)},
                        nullptr};
  std::shared_ptr<PassthroughFunction> function;
};

}  // namespace crossbar::testing
