// IrqLine: one wire into the interrupt controller. vmm/ implements it over KVM; tests record it.
#pragma once

namespace crossbar {

class IrqLine {
 public:
  virtual ~IrqLine() = default;
  // Any thread; callers that must not reorder edges call it under their own lock.
  virtual void Set(bool asserted) = 0;
};

}  // namespace crossbar
