#include "boot/reset_vector.h"

#include <array>
#include <cstdint>
#include <span>

#include "boot/x86_layout.h"

namespace crossbar {

Result<> WriteResetVector(const GuestRam& ram, const PlatformInfo::Power& power) {
  const auto port_low = static_cast<uint8_t>(power.reset_port);
  const auto port_high = static_cast<uint8_t>(power.reset_port >> 8);
  const std::array<uint8_t, x86_layout::kResetVector.size> code = {
      0xba, port_low, port_high,  // mov dx, reset_port
      0xb0, power.reset_value,    // mov al, reset_value
      0xee,                       // out dx, al
      0xf4,                       // hlt: the vCPU is stopped at its next exit
      0xeb, 0xfd,                 // jmp to the hlt
  };
  return Within(ram.Write(x86_layout::kResetVector.start, std::as_bytes(std::span(code))),
                [] { return "cannot write the reset vector"; });
}

}  // namespace crossbar
