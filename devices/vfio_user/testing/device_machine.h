// DeviceMachine: a ClientMachine with a device on its bus: a PassthroughFunction over a server.
#pragma once

#include <linux/pci_regs.h>

#include <memory>
#include <numeric>
#include <utility>

#include "devices/passthrough/function.h"
#include "devices/passthrough/testing/fake_interrupts.h"
#include "devices/vfio_user/testing/client_machine.h"

namespace crossbar::vfio_user::testing {

struct DeviceMachine : ClientMachine {
  static constexpr uint64_t kRegistersAt = 0;  // in the window: BAR 0, trapped
  static constexpr uint64_t kMemoryAt = 0x100000;  // BAR 2, mapped

  DeviceMachine() : ClientMachine(milliseconds(350)) {}
  ~DeviceMachine() {
    if (function != nullptr) function->Close();
  }

  Result<> Start(Fd socket, Connection::Limits limits = {}) {
    PassthroughFunction::Surroundings around{space, router, watcher, zaps, {{window}, nullptr}, {}};
    function = TRY(PassthroughFunction::Create(TRY(Connect(std::move(socket), limits)),
                                               {.id = "device"}, std::move(around)));
    const auto base = static_cast<uint32_t>(window->start());
    function->WriteConfig(PCI_BASE_ADDRESS_0, 4, base + kRegistersAt);
    function->WriteConfig(PCI_BASE_ADDRESS_2, 4, base + kMemoryAt);
    function->WriteConfig(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    return {};
  }
  // As the watcher's thread: waits for the news that the device is lost.
  void Watch() {
    ASSERT_EQ(watcher.handlers.size(), 1u);
    pollfd poll{watcher.handlers.begin()->first, POLLIN, 0};
    ASSERT_EQ(sys::Poll({&poll, 1}, 5000), 1) << "nobody has noticed";
    watcher.Run(poll.fd);
  }
  uint64_t ReadMemory() { return window->Read(kMemoryAt, 4); }
  uint64_t ReadRegister() { return window->Read(kRegistersAt + 0x10, 4); }
  unsigned ZappedPieces() const {
    const auto zapped = zaps.Recent();
    return std::accumulate(zapped.begin(), zapped.end(), 0u,
                           [](unsigned sum, const ZapNotification& zap) { return sum + zap.pieces; });
  }

  crossbar::testing::FakeRouter router{recorder};
  crossbar::testing::FakeWatcher watcher;
  ZapLog zaps;
  std::shared_ptr<PciWindow> window = std::make_shared<PciWindow>(0xc0000000, 0x1000000);
  std::shared_ptr<PassthroughFunction> function;
};

}  // namespace crossbar::vfio_user::testing
