// KvmIrqLine: one pin of KVM's in-kernel interrupt controller. Any thread.
#pragma once

#include <cstdint>

#include "devices/irq_line.h"

namespace crossbar {

class KvmIrqLine : public IrqLine {
 public:
  // `vm_fd` is borrowed and outlives this.
  KvmIrqLine(int vm_fd, uint32_t gsi) : vm_fd_(vm_fd), gsi_(gsi) {}
  void Set(bool asserted) override;

 private:
  const int vm_fd_;
  const uint32_t gsi_;
};

}  // namespace crossbar
