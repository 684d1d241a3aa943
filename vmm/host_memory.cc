#include "vmm/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>

#include "base/sys.h"

namespace crossbar {
namespace {

// The number that `text` starts with, after blanks.
std::optional<uint64_t> LeadingNumber(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

// Calls `use` with each line of a file; with none where it cannot be read.
template <typename Use>
void ForEachLine(const std::string& path, Use use) {
  const Result<std::string> text = sys::ReadFile(path);
  if (!text) return;
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    use(std::string_view(*text).substr(at, end - at));
    at = end + 1;
  }
}

void Lower(MemoryLimit& limit, uint64_t bytes, const char* whose) {
  if (bytes < limit.bytes) limit = {bytes, whose};
}

// The limits in `file` of the group `path` and all above it. "max" is no number and no limit.
void LowerToGroups(MemoryLimit& limit, const std::string& mount, std::string path,
                   const char* file) {
  while (true) {
    ForEachLine(mount + path + "/" + file, [&](std::string_view line) {
      if (const auto bytes = LeadingNumber(line))
        Lower(limit, *bytes, "the control group of this process allows");
    });
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return;
    path.resize(slash);
  }
}

}  // namespace

MemoryLimit LeastMemoryLimit(const std::string& root) {
  MemoryLimit limit{std::numeric_limits<uint64_t>::max(), ""};
  ForEachLine(root + "/proc/meminfo", [&](std::string_view line) {
    constexpr std::string_view kAvailable = "MemAvailable:";
    if (!line.starts_with(kAvailable)) return;
    if (const auto kilobytes = LeadingNumber(line.substr(kAvailable.size())))
      Lower(limit, *kilobytes * kKiB, "the host has available");
  });
  // HIERARCHY:CONTROLLERS:PATH; version 2 has no controllers.
  ForEachLine(root + "/proc/self/cgroup", [&](std::string_view line) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) return;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string path(line.substr(second + 1));
    const std::string mount = root + "/sys/fs/cgroup";
    if (controllers.empty()) LowerToGroups(limit, mount, path, "memory.max");
    if (controllers.find("memory") != std::string_view::npos)
      LowerToGroups(limit, mount + "/memory", path, "memory.limit_in_bytes");
  });
  return limit;
}

bool TakesAllAtStart(const RunOptions& options) {
  const auto pins = [](const DeviceSpec& device) { return !device.host.empty(); };
  return options.prefault || std::ranges::any_of(options.devices, pins);
}

Result<> CheckHostHas(const RunOptions& options) {
  const uint64_t wanted = options.memory_bytes;
  const auto host = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * kPageSize;
  MemoryLimit limit{host, "the host has"};
  // Huge pages are reserved apart from both.
  if (TakesAllAtStart(options) && options.pages == PageSize::k4K) {
    const MemoryLimit least = LeastMemoryLimit();
    Lower(limit, least.bytes, least.whose);
  }
  if (wanted <= limit.bytes) return {};
  return std::unexpected(Error::Of("--memory: {} MiB is more than the {} MiB that {}",
                                   wanted / kMiB, limit.bytes / kMiB, limit.whose)
                             .WithHint(limit.bytes == host || !options.prefault
                                           ? "lower --memory"
                                           : "lower --memory, or leave out --prefault"));
}

}  // namespace crossbar
