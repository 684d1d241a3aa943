// DeviceSpec: one --device of the command line, parsed and checked in itself. A value.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "devices/passthrough/zap_notification.h"

namespace crossbar {

struct DeviceSpec {
  // Where it comes from; exactly one of the three.
  std::string host;    // PCI address on the host, "0000:01:00.0": the kernel's VFIO
  std::string socket;  // path of a vfio-user server's socket
  std::string model;   // "dma", "memory": a vfio-user server of our own, started and ended with the VM
  std::vector<std::string> model_arguments;  // of `crossbar serve MODEL`

  std::string id;               // for people; unique
  std::string port;             // the virtual root port it is behind; "": it is on the root bus
  std::optional<uint8_t> slot;  // device number on the guest's root bus, 1 to 31, of it or of its port; else
                                // the first free
  bool p2p = true;              // its BARs are targets of the other devices' DMA
  bool rom = true;              // the guest sees an expansion ROM if there is one
  std::string rom_file;         // in place of the device's own

  // A fault that is injected, once, so long after all devices were connected: just before the guest starts. 1 ms to a day.
  struct Fault {
    ZapCause cause = ZapCause::kDeviceError;
    std::chrono::milliseconds after{};
  };
  std::optional<Fault> fault;

  // Where it comes from, as it was written.
  const std::string& source() const {
    return !host.empty() ? host : !socket.empty() ? socket : model;
  }
};

// "0000:01:00.0,id=nic,port=rp0,slot=3,p2p=off,rom=FILE,fault=device-error@2.5", "host=...", "path=/sys/bus/pci/devices/...",
// "socket=PATH", "model=memory,size=16M". The error says what is wrong with which part.
Result<DeviceSpec> ParseDeviceSpec(const std::string& text);

// Error: two are one device, or have the same id or slot.
Result<> CheckDistinct(const std::vector<DeviceSpec>& specs);

}  // namespace crossbar
