#include "devices/vfio/sysfs.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <sstream>

#include "base/sys_files.h"

namespace crossbar {
namespace {

std::string LastPart(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// Each line of `resource` is "start end flags"; both are 0 where there is none.
std::array<PhysicalRange, 7> ParseResources(const std::string& text) {
  std::array<PhysicalRange, 7> resources;
  std::istringstream lines(text);
  lines >> std::hex >> std::showbase;
  for (PhysicalRange& resource : resources) {
    uint64_t start = 0;
    uint64_t last = 0;
    uint64_t flags = 0;
    if (!(lines >> start >> last >> flags)) break;
    if (last > start) resource = {start, last - start + 1};
  }
  return resources;
}

}  // namespace

Result<std::string> ParsePciAddress(const std::string& text) {
  unsigned domain = 0;
  unsigned bus = 0;
  unsigned device = 0;
  unsigned function = 0;
  int end = -1;
  if (std::sscanf(text.c_str(), "%4x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &end) != 4 ||
      end != static_cast<int>(text.size())) {
    domain = 0;
    end = -1;
    if (std::sscanf(text.c_str(), "%2x:%2x.%1x%n", &bus, &device, &function, &end) != 3 ||
        end != static_cast<int>(text.size()))
      return Fail("'{}' is not a PCI address such as 0000:01:00.0", text);
  }
  if (device > 31 || function > 7)
    return Fail("'{}': a PCI device is 00 to 1f and a function 0 to 7", text);
  return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", domain, bus, device, function);
}

Result<HostPciDevice> FindHostPciDevice(const HostRoots& roots, const std::string& address) {
  HostPciDevice device;
  device.address = address;
  auto path = sys::RealPath(roots.sys + "/bus/pci/devices/" + address);
  if (!path) {
    return std::unexpected(Error::Of("there is no PCI device {} on this host", address)
                               .WithHint("lspci -D lists those that are there"));
  }
  device.path = *std::move(path);
  if (const auto driver = sys::ReadLink(device.path + "/driver")) device.driver = LastPart(*driver);
  if (const auto link = sys::ReadLink(device.path + "/iommu_group")) {
    const std::string number = LastPart(*link);
    unsigned group = 0;
    if (std::from_chars(number.data(), number.data() + number.size(), group).ec == std::errc())
      device.group = group;
  }
  device.bridge = TRY(sys::ReadText(device.path + "/class")).starts_with("0x0604");
  device.resources = ParseResources(TRY(sys::ReadText(device.path + "/resource")));
  return device;
}

Result<std::vector<HostPciDevice>> DevicesOfGroup(const HostRoots& roots, unsigned group) {
  std::vector<HostPciDevice> devices;
  const std::string folder = fmt::format("{}/kernel/iommu_groups/{}/devices", roots.sys, group);
  for (const std::string& name : TRY(sys::ListFolder(folder)))
    devices.push_back(TRY(FindHostPciDevice(roots, name)));
  return devices;
}

std::string HowToBind(const HostRoots& roots, const std::vector<HostPciDevice>& devices) {
  const std::string bus = roots.sys + "/bus/pci";
  std::string command;
  if (!sys::RealPath(bus + "/drivers/vfio-pci")) command = "modprobe vfio-pci; ";
  for (const HostPciDevice& device : devices) {
    const std::string folder = bus + "/devices/" + device.address;
    command += fmt::format("echo vfio-pci >{}/driver_override; ", folder);
    if (!device.driver.empty())
      command += fmt::format("echo {} >{}/driver/unbind; ", device.address, folder);
    command += fmt::format("echo {} >{}/drivers_probe; ", device.address, bus);
  }
  command.resize(command.size() - std::min<size_t>(command.size(), 2));
  return command;
}

}  // namespace crossbar
