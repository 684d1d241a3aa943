#include "vmm/device_spec.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/vfio/sysfs.h"
#include "vmm/serve.h"

namespace crossbar {
namespace {

using Part = std::pair<std::string, std::string>;  // NAME=VALUE

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

// What comes from outside, or what a device may do by itself.
constexpr std::array kFaults = {ZapCause::kDeviceError, ZapCause::kDeviceGone, ZapCause::kWantedBack,
                                ZapCause::kFunctionReset, ZapCause::kDecodeOff};

// "device-error@2.5"
Result<DeviceSpec::Fault> ParseFault(const std::string& value) {
  constexpr double kMostSeconds = 24 * 60 * 60;
  const size_t at = value.find('@');
  const std::string_view name = std::string_view(value).substr(0, at);
  const auto cause = std::ranges::find(kFaults, name, ZapCauseName);
  if (cause == kFaults.end()) {
    std::vector<std::string_view> names(kFaults.size());
    std::ranges::transform(kFaults, names.begin(), ZapCauseName);
    return Fail("fault={}: there is no such fault; there are {}", value, fmt::join(names, ", "));
  }
  double seconds = 0;
  const char* const last = value.data() + value.size();
  const char* const first = at == std::string::npos ? last : value.data() + at + 1;
  const auto [end, error] = std::from_chars(first, last, seconds, std::chars_format::fixed);
  if (error != std::errc() || end != last || !(seconds >= 0.001 && seconds <= kMostSeconds))
    return Fail("fault={} does not say when; write {}@2.5 for 2.5 seconds after the devices are connected (0.001 to {:.0f})",
                value, name, kMostSeconds);
  return DeviceSpec::Fault{*cause, std::chrono::milliseconds(std::llround(seconds * 1000))};
}

// A first part without a name is the host's address.
Result<std::vector<Part>> Split(const std::string& text) {
  std::vector<Part> parts;
  std::istringstream pieces(text);
  for (std::string piece; std::getline(pieces, piece, ',');) {
    const size_t equals = piece.find('=');
    const bool bare = equals == std::string::npos && parts.empty();
    if (equals == std::string::npos && !bare) return Fail("'{}' is not NAME=VALUE", piece);
    Part part = bare ? Part("host", piece) : Part(piece.substr(0, equals), piece.substr(equals + 1));
    if (part.second.empty()) return Fail("{}= has no value", part.first);
    if (std::ranges::find(parts, part.first, &Part::first) != parts.end())
      return Fail("{}= is given twice", part.first);
    parts.push_back(std::move(part));
  }
  return parts;
}

// False where `name` is none that every device has.
Result<bool> Set(DeviceSpec& spec, const std::string& name, const std::string& value) {
  if (name == "host") {
    spec.host = TRY(ParsePciAddress(value));
  } else if (name == "path") {
    const std::string path = value.substr(0, value.find_last_not_of('/') + 1);
    spec.host = TRY(ParsePciAddress(path.substr(path.rfind('/') + 1)));
  } else if (name == "socket") {
    spec.socket = value;
  } else if (name == "model") {
    spec.model = value;
  } else if (name == "id") {
    spec.id = value;
  } else if (name == "port") {
    spec.port = value;
  } else if (name == "slot") {
    spec.slot = TRY(ParseSlot(value));
  } else if (name == "p2p") {
    spec.p2p = TRY(ParseSwitch(name, value));
  } else if (name == "rom") {
    spec.rom = value != "off";
    if (spec.rom) spec.rom_file = value;
  } else if (name == "fault") {
    spec.fault = TRY(ParseFault(value));
  } else {
    return false;
  }
  return true;
}

// What is left is the model's own: msix=on is --msix, size=16M is --size 16M.
Result<> SetModel(DeviceSpec& spec, const std::vector<Part>& rest) {
  spec.model_arguments = {spec.model};
  for (const auto& [name, value] : rest) {
    if (value == "off") continue;
    spec.model_arguments.push_back("--" + name);
    if (value != "on") spec.model_arguments.push_back(value);
  }
  std::vector<std::string> whole = spec.model_arguments;
  whole.insert(whole.end(), {"--socket-fd", "3"});
  TRY(ParseServeOptions(whole));
  return {};
}

}  // namespace

Result<DeviceSpec> ParseDeviceSpec(const std::string& text) {
  DeviceSpec spec;
  std::vector<Part> rest;
  unsigned sources = 0;
  for (Part& part : TRY(Split(text))) {
    const bool source = part.first == "host" || part.first == "path" || part.first == "socket" ||
                        part.first == "model";
    sources += source ? 1 : 0;
    if (!TRY(Set(spec, part.first, part.second))) rest.push_back(std::move(part));
  }
  if (sources != 1)
    return Fail("'{}' names {}; give a PCI address such as 0000:01:00.0, or socket=PATH, or "
                "model=dma or memory", text, sources == 0 ? "no device" : "more than one device");
  if (!spec.model.empty()) {
    TRY(SetModel(spec, rest));
  } else if (!rest.empty()) {
    return Fail("there is no {}=; a device has id, port, slot, p2p, rom and fault", rest.front().first);
  }
  if (spec.id.empty()) spec.id = spec.source();
  return spec;
}

Result<> CheckDistinct(const std::vector<DeviceSpec>& specs) {
  std::set<std::string> sources;  // of models there may be several
  std::set<std::string> ids;
  std::map<uint8_t, std::string> slots;  // the port that has it, or ""
  std::map<std::string, uint8_t> ports;
  for (const DeviceSpec& spec : specs) {
    if (spec.model.empty() && !sources.insert(spec.source()).second)
      return Fail("{} is given twice", spec.source());
    if (!ids.insert(spec.id).second)
      return Fail("two devices have the id {}; give them different id=", spec.id);
    if (!spec.slot) continue;
    const auto [taken, free] = slots.emplace(*spec.slot, spec.port);
    if (!free && (spec.port.empty() || taken->second != spec.port))
      return Fail("two devices have the slot {:x}", *spec.slot);
    if (!spec.port.empty() && ports.emplace(spec.port, *spec.slot).first->second != *spec.slot)
      return Fail("port={} is given two slots", spec.port);
  }
  return {};
}

}  // namespace crossbar
