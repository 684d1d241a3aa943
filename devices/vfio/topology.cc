#include "devices/vfio/topology.h"

#include <linux/pci_regs.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "base/sys.h"
#include "base/sys_files.h"
#include "devices/pci_config_space.h"

namespace crossbar {
namespace {

constexpr uint64_t kResourceMemory = 0x200;                    // IORESOURCE_MEM
constexpr uint64_t kResourceAbsent = 0x10000000 | 0x20000000;  // IORESOURCE_DISABLED, _UNSET

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/')); }
std::string NameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }
bool IsDevice(const std::string& path) { return ParsePciAddress(NameOf(path)).has_value(); }

// A device or bridge on the way up.
struct Component {
  std::string path;
  bool bridge = false;
  bool seen = false;               // all of config space could be read
  std::optional<uint8_t> express;  // PCI_EXP_TYPE_*; none: conventional PCI, or not seen

  // What is not seen may be one.
  bool is_port() const {
    return seen ? express == PCI_EXP_TYPE_DOWNSTREAM || express == PCI_EXP_TYPE_ROOT_PORT : bridge;
  }
  // Why it turns requests around; empty: it redirects them.
  std::string turns;
};

Component Look(const std::string& path) {
  Component component;
  component.path = path;
  const auto bytes = sys::ReadFile(path + "/config");
  const std::string name = NameOf(path);
  if (!bytes || bytes->size() < 64) {
    component.bridge = true;  // the worst that it can be
    component.turns = name + " cannot be read";
    return component;
  }
  PciConfigSpace config;
  for (uint16_t i = 0; i < std::min<size_t>(bytes->size(), PciConfigSpace::kSize); ++i)
    config.Set<uint8_t>(i, static_cast<uint8_t>((*bytes)[i]));
  component.bridge = (config.Get<uint8_t>(PCI_HEADER_TYPE) & 0x7f) == PCI_HEADER_TYPE_BRIDGE;
  // The kernel shows the rest to those who have CAP_SYS_ADMIN.
  component.seen = bytes->size() > 64;
  if (!component.seen) {
    component.turns = fmt::format("the ACS of {} can be read by root only", name);
    return component;
  }
  if (const auto express = config.FindCapability(PCI_CAP_ID_EXP)) {
    const auto flags = config.Get<uint16_t>(static_cast<uint16_t>(*express + PCI_EXP_FLAGS));
    component.express = static_cast<uint8_t>((flags & PCI_EXP_FLAGS_TYPE) >> 4);
  }
  const auto acs = config.FindExtendedCapability(PCI_EXT_CAP_ID_ACS);
  constexpr uint16_t kRedirects = PCI_ACS_RR | PCI_ACS_CR;
  if (!acs || *acs + PCI_ACS_CTRL + 2u > PciConfigSpace::kSize) {
    component.turns = name + " has no ACS";
  } else if ((config.Get<uint16_t>(*acs + PCI_ACS_CTRL) & kRedirects) != kRedirects) {
    component.turns = name + " has the redirection of its ACS off";
  }
  return component;
}

// The devices on the bus below the bridge or root `folder`.
std::vector<std::string> DevicesBelow(const std::string& folder) {
  std::vector<std::string> paths;
  const auto names = sys::ListFolder(folder);
  if (!names) return paths;
  for (const std::string& name : *names)
    if (IsDevice(name)) paths.push_back(folder + "/" + name);
  return paths;
}

bool SameSlot(const std::string& a, const std::string& b) {
  return a.substr(0, a.rfind('.')) == b.substr(0, b.rfind('.'));
}

// The memory that a device or bridge answers for on its bus: BARs, and windows of a bridge.
void AddMemory(const std::string& path, std::vector<GuestRange>& ranges) {
  const auto text = sys::ReadText(path + "/resource");
  if (!text) return;
  std::istringstream lines(*text);
  lines >> std::hex >> std::showbase;
  uint64_t start = 0;
  uint64_t last = 0;
  uint64_t flags = 0;
  while (lines >> start >> last >> flags) {
    if ((flags & kResourceMemory) == 0 || (flags & kResourceAbsent) != 0 || last <= start) continue;
    ranges.push_back({Gpa(start), last - start + 1});
  }
}

// The peers on its bus that requests which come through `component` may turn to.
std::vector<std::string> PeersOf(const Component& component, bool on_root_bus) {
  std::vector<std::string> peers = DevicesBelow(FolderOf(component.path));
  std::erase(peers, component.path);
  // Below a bridge, a bus is a link with one device of several functions, or a switch's inside, or
  // conventional; in the root complex, what is no port reaches its own other functions only.
  if (on_root_bus && !component.is_port())
    std::erase_if(peers, [&](const auto& path) { return !SameSlot(path, component.path); });
  return peers;
}

// Buses of conventional PCI have no direction: whoever is on them hears everybody.
bool IsShared(const Component& bridge) {
  return bridge.seen && (!bridge.express || bridge.express == PCI_EXP_TYPE_PCI_BRIDGE);
}

}  // namespace

std::vector<PciTurn> TurnsOf(const HostPciDevice& device) {
  std::vector<Component> way;
  for (std::string path = device.path; IsDevice(path); path = FolderOf(path))
    way.push_back(Look(path));
  std::vector<PciTurn> turns;
  for (size_t i = 0; i < way.size(); ++i) {
    const Component* const above = i + 1 < way.size() ? &way[i + 1] : nullptr;
    PciTurn turn;
    turn.reason = way[i].turns;
    if (above != nullptr && IsShared(*above))
      turn.reason = fmt::format("the bus below {} is shared", NameOf(above->path));
    if (turn.reason.empty()) continue;
    turn.peers = PeersOf(way[i], above == nullptr);
    // What is in a port's own window does not come through it either.
    if (turn.peers.empty() && !way[i].is_port()) continue;
    // A bridge passes nothing up that is within its windows.
    if (above != nullptr) {
      AddMemory(above->path, turn.windows);
    } else {
      AddMemory(way[i].path, turn.windows);
      for (const std::string& peer : turn.peers) AddMemory(peer, turn.windows);
    }
    turns.push_back(std::move(turn));
  }
  return turns;
}

std::optional<std::string> ReachedPastIommu(const std::vector<PciTurn>& turns,
                                            const HostPciDevice& target) {
  for (const PciTurn& turn : turns) {
    for (const std::string& peer : turn.peers)
      if (target.path == peer || target.path.starts_with(peer + "/")) return turn.reason;
  }
  return std::nullopt;
}

}  // namespace crossbar
