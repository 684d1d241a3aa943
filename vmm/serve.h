// `crossbar serve`: a device as a process of its own, for any vfio-user client.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "devices/vfio_user/dma_device.h"

namespace crossbar {

struct ServeOptions {
  bool help = false;
  std::string model;    // "dma" or "memory"
  std::string socket;   // path to listen at, or empty:
  int socket_fd = -1;   // one client, connected already
  uint64_t size = 0;    // memory: of BAR 2
  vfio_user::ServedDevice::FunctionReset reset = {};  // memory's; that of dma is in `dma`
  vfio_user::DmaDevice::Options dma;
  LogLevel log_level = LogLevel::kWarning;
};

// The arguments after "serve". Errors name the option.
Result<ServeOptions> ParseServeOptions(const std::vector<std::string>& arguments);
std::string ServeHelp();

// An error where --socket-fd names no socket that a client may be at the other end of.
Result<> CheckSocket(const ServeOptions& options);
// Serves until a signal ends the process, or the one client hangs up.
Result<> Serve(const ServeOptions& options);

}  // namespace crossbar
