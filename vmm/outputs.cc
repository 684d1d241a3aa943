#include "vmm/outputs.h"

#include <optional>
#include <string>
#include <vector>

#include "base/sys.h"

namespace crossbar {
namespace {

// A file, or where one would be made: in which folder, by which name.
struct Place {
  dev_t device = 0;
  ino_t inode = 0;
  std::string name;  // empty for a file that is there
  bool operator==(const Place&) const = default;
};

// Nothing for a pipe or a device, which several may share, and for what cannot be looked at: opening it
// will say why.
std::optional<Place> PlaceOf(const std::string& path) {
  if (const Result<struct stat> file = sys::Stat(path)) {
    if (!S_ISREG(file->st_mode)) return std::nullopt;
    return Place{file->st_dev, file->st_ino, {}};
  }
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const Result<struct stat> parent = sys::Stat(folder);
  if (!parent) return std::nullopt;
  return Place{parent->st_dev, parent->st_ino, path.substr(slash + 1)};  // npos + 1 is 0
}

struct Named {
  const char* option;
  std::string path;
};

}  // namespace

Result<> CheckOutputs(const RunOptions& options) {
  std::vector<Named> others = {{"--kernel", options.kernel},
                               {"--initrd", options.initrd},
                               {"--config", options.config}};
  for (const RunOptions::Module& module : options.modules)
    others.push_back({"--module", module.path});
  for (const DeviceSpec& device : options.devices) others.push_back({"--device rom=", device.rom_file});
  for (const Named& output :
       {Named{"--console", options.console_file()}, Named{"--report", options.report}}) {
    if (output.path.empty()) continue;
    const std::optional<Place> place = PlaceOf(output.path);
    for (const Named& other : others) {
      if (place && !other.path.empty() && place == PlaceOf(other.path)) {
        return Fail("{} and {} name the same file, '{}'", output.option, other.option, other.path);
      }
    }
    others.push_back(output);
  }
  return {};
}

}  // namespace crossbar
