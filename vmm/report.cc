#include "vmm/report.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/sys.h"
#include "vmm/passthrough_report.h"

namespace crossbar {
namespace {

// Keeps the order of the fields as written.
using Json = nlohmann::ordered_json;

uint64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

Json PhasesJson(const StartupPhases& phases) {
  Json list = Json::array();
  auto begin = phases.start();
  for (const StartupPhases::Phase& phase : phases.phases()) {
    list.push_back({{"name", phase.name},
                    {"us", Microseconds(phase.end - begin)},
                    {"at_us", Microseconds(phase.end - phases.start())}});
    begin = phase.end;
  }
  return list;
}

Json MarkersJson(const BootMarker::Marks& marks, const StartupPhases& phases) {
  Json list = Json::array();
  for (const BootMarker::Mark& mark : marks.first) {
    const std::chrono::steady_clock::time_point at{std::chrono::nanoseconds(mark.monotonic_ns)};
    list.push_back({{"value", mark.value}, {"at_us", Microseconds(at - phases.start())}});
  }
  return list;
}

Json MemslotsJson(const KvmMemslotTable& table) {
  Json list = Json::array();
  for (const Memslot& slot : table.Slots()) {
    list.push_back({{"slot", slot.number},
                    {"gpa", fmt::format("{}", slot.range.start)},
                    {"bytes", slot.range.size},
                    {"hva", fmt::format("{:#x}", slot.host.value())},
                    {"read_only", slot.read_only}});
  }
  return list;
}

Json ExitsJson(const Vm& vm) {
  Json list = Json::array();
  for (const auto& vcpu : vm.vcpus()) {
    const ExitCounts& exits = vcpu->exits();
    list.push_back({{"vcpu", vcpu->id()},
                    {"pio", exits.pio.load()},
                    {"mmio", exits.mmio.load()},
                    {"interrupted", exits.interrupted.load()},
                    {"other", exits.other.load()}});
  }
  return list;
}

// Not a link: what /dev/stdout leads to may be a file, and the link must not be replaced by ours.
bool IsFileOrAbsent(const std::string& path) {
  const Result<struct stat> status = sys::Lstat(path);
  return !status || S_ISREG(status->st_mode);
}

std::string Beside(const std::string& path) {
  return fmt::format("{}.{}.partial", path, ::getpid());
}

}  // namespace

Result<Fd> ReportFile::CreateBeside(const std::string& path) {
  return sys::Open(Beside(path), O_WRONLY | O_CREAT | O_EXCL, 0644);
}

Result<ReportFile> ReportFile::Open(const std::string& path) {
  const bool file = IsFileOrAbsent(path);
  Result<Fd> fd = file ? CreateBeside(path) : sys::Open(path, O_WRONLY | O_APPEND);
  if (!fd) {
    const int code = fd.error().code();  // the name beside it is our affair
    return std::unexpected(
        Error(code, fmt::format("cannot write the report {}: {}", path, sys::ErrnoText(code)))
            .WithHint("give --report a path in a folder that you can write to"));
  }
  if (!file) return ReportFile(path, *std::move(fd));
  ::unlink(Beside(path).c_str());
  return ReportFile(path, Fd());
}

Result<> ReportFile::Write(const std::string& text) {
  if (stream_.valid()) return sys::WriteAll(stream_.get(), std::as_bytes(std::span(text)));
  const Fd file = TRY(CreateBeside(path_));
  const auto fill = [&]() -> Result<> {
    TRY(sys::WriteAll(file.get(), std::as_bytes(std::span(text))));
    return sys::Rename(Beside(path_), path_);
  };
  Result<> filled = fill();
  if (!filled) ::unlink(Beside(path_).c_str());
  return filled;
}

Result<> ReportFile::Commit(const std::string& text) {
  Result<> written = Within(Write(text), [&] { return fmt::format("cannot write the report {}", path_); });
  if (written) return written;
  return std::unexpected(std::move(written).error().WithHint("make room there, or give --report another path"));
}

std::string ReportText(const Json& report) {
  return report.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

Result<uint64_t> MemoryOverhead() {
  const std::string text = TRY(sys::ReadFile("/proc/self/smaps"));
  uint64_t kilobytes = 0;
  bool guest = false;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end == std::string::npos ? text.size() : end + 1;
    constexpr std::string_view kRss = "Rss:";
    if (line.starts_with(kRss)) {
      const size_t digits = line.find_first_of("0123456789");
      uint64_t value = 0;
      if (digits != std::string_view::npos)
        std::from_chars(line.data() + digits, line.data() + line.size(), value);
      if (!guest) kilobytes += value;
    } else if (!line.empty() && line.find('-') < line.find(':')) {
      guest = line.find("memfd:guest-ram") != std::string_view::npos;  // a mapping's first line
    }
  }
  return kilobytes * kKiB;
}

Result<std::string> RenderReport(Vm& vm, const StartupPhases& phases, const StopRequest& end) {
  const uint64_t overhead = TRY(MemoryOverhead());
  Json report;
  report["crossbar"] = CROSSBAR_VERSION;
  report["end"] = {{"reason", ReasonName(end.reason)},
                   {"status", end.status},
                   {"detail", end.detail},
                   {"reboots", vm.reboots()}};
  report["kernel_format"] = FormatName(vm.loaded().format);
  report["phases"] = PhasesJson(phases);
  const BootMarker::Marks marks = vm.boot_marker().Snapshot();
  report["boot_markers"] = MarkersJson(marks, phases);
  report["boot_marker_writes"] = marks.count;
  report["memory"] = {{"ram_bytes", vm.ram().size()},
                      {"page_bytes", static_cast<uint64_t>(vm.ram().page_size())},
                      {"overhead_bytes", overhead}};
  report["memslots"] = MemslotsJson(vm.memslots());
  report["trapped_bar_pieces"] = vm.address_space().trapped_pieces();
  report["exits"] = ExitsJson(vm);
  if (vm.passthrough() != nullptr)
    report["passthrough"] = PassthroughJson(*vm.passthrough(), vm.address_space().Peers());
  return ReportText(report);
}

}  // namespace crossbar
