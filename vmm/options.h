// Options: the command line and config file of `crossbar run`, parsed and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "memory/guest_ram.h"
#include "vmm/device_spec.h"

namespace crossbar {

struct RunOptions {
  struct Module {
    std::string path;
    std::string arguments;
  };

  // The PATH of "file:PATH", else nothing.
  std::string console_file() const;

  std::string kernel;
  std::string initrd;           // empty: none
  std::vector<Module> modules;  // after the initrd
  std::vector<DeviceSpec> devices;
  std::string command_line;
  uint64_t memory_bytes = 512 * kMiB;
  unsigned cpus = 1;
  PageSize pages = PageSize::k4K;
  bool prefault = false;
  std::string console = "stdio";
  std::string report;           // empty: none
  LogLevel log_level = LogLevel::kWarning;
  std::vector<std::string> failpoints;
  std::string config;           // empty: none
  bool help = false;            // print RunHelp() and leave
};

// `arguments` are those after "run". The error is a usage error: one line that says what is wrong.
Result<RunOptions> ParseRunOptions(const std::vector<std::string>& arguments);
std::string RunHelp();

// "512M", "3.5G", "1048576": bytes, a suffix of K, M, G or T allowed.
Result<uint64_t> ParseSize(const std::string& text);

}  // namespace crossbar
