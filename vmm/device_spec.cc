#include "vmm/device_spec.h"

#include <charconv>
#include <set>
#include <sstream>

#include "devices/vfio/sysfs.h"

namespace crossbar {
namespace {

Result<bool> ParseSwitch(const std::string& name, const std::string& value) {
  if (value == "on") return true;
  if (value == "off") return false;
  return Fail("{}={} is not on or off", name, value);
}

// As lspci writes it: hexadecimal.
Result<uint8_t> ParseSlot(const std::string& value) {
  unsigned slot = 0;
  const char* const last = value.data() + value.size();
  const auto [end, error] = std::from_chars(value.data(), last, slot, 16);
  if (error != std::errc() || end != last || slot == 0 || slot > 31)
    return Fail("slot={} is not a PCI device number from 1 to 1f", value);
  return static_cast<uint8_t>(slot);
}

Result<> Set(DeviceSpec& spec, const std::string& name, const std::string& value) {
  if (value.empty()) return Fail("{}= has no value", name);
  if (name == "host") {
    spec.host = TRY(ParsePciAddress(value));
  } else if (name == "path") {
    std::string path = value;
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    spec.host = TRY(ParsePciAddress(path.substr(path.rfind('/') + 1)));
  } else if (name == "id") {
    spec.id = value;
  } else if (name == "slot") {
    spec.slot = TRY(ParseSlot(value));
  } else if (name == "p2p") {
    spec.p2p = TRY(ParseSwitch(name, value));
  } else if (name == "rom") {
    spec.rom = value != "off";
    if (spec.rom) spec.rom_file = value;
  } else {
    return Fail("there is no {}=; a device has host, path, id, slot, p2p and rom", name);
  }
  return {};
}

}  // namespace

Result<DeviceSpec> ParseDeviceSpec(const std::string& text) {
  DeviceSpec spec;
  std::set<std::string> seen;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const bool bare = equals == std::string::npos && seen.empty();
    if (equals == std::string::npos && !bare) return Fail("'{}' is not NAME=VALUE", part);
    const std::string name = bare ? "host" : part.substr(0, equals);
    if (!seen.insert(name).second) return Fail("{}= is given twice", name);
    TRY(Set(spec, name, bare ? part : part.substr(equals + 1)));
  }
  if (seen.contains("host") == seen.contains("path"))
    return Fail("'{}' names no device: give its PCI address, such as 0000:01:00.0", text);
  if (spec.id.empty()) spec.id = spec.host;
  return spec;
}

}  // namespace crossbar
