#include "devices/debug_exit.h"

#include <utility>

namespace crossbar {

DebugExit::DebugExit(std::function<void(int)> on_exit) : on_exit_(std::move(on_exit)) {}

uint64_t DebugExit::Read(uint64_t, unsigned) {
  return 0;
}

void DebugExit::Write(uint64_t, unsigned size, uint64_t value) {
  on_exit_(ExitStatus(value & AllOnes(size)));
}

}  // namespace crossbar
