// DebugExit: ports through which a guest ends the VM with a status, as QEMU's isa-debug-exit.
//
// Owned by the port bus; vCPU threads write. The program's exit status is (value << 1 | 1) & 0xff:
// odd, and so never one of the VMM's own codes. Reads return 0, as from QEMU's device.
#pragma once

#include <cstdint>
#include <functional>

#include "devices/bus.h"

namespace crossbar {

class DebugExit final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 4;

  static constexpr int ExitStatus(uint64_t value) {
    return static_cast<int>(((value << 1) | 1) & 0xff);
  }

  // `on_exit` gets the exit status; on a vCPU's thread, with no lock held, maybe several times.
  explicit DebugExit(std::function<void(int)> on_exit);

  uint64_t Read(uint64_t offset, unsigned size) override;
  // At any offset and of any width, as with QEMU's device.
  void Write(uint64_t offset, unsigned size, uint64_t value) override;

 private:
  const std::function<void(int)> on_exit_;
};

}  // namespace crossbar
