// Report: what --report writes, as JSON. docs/report.md describes the fields.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/result.h"
#include "vmm/phases.h"
#include "vmm/stop.h"
#include "vmm/vm.h"

namespace crossbar {

// The file of a report. Opened before the VM is made, so that a path that cannot be written is an
// error at once. Until Commit nothing of it exists: however we end, nothing is left behind.
class ReportFile {
 public:
  static Result<ReportFile> Open(const std::string& path);

  // A file appears whole or not at all; a pipe, a device or a symbolic link (/dev/stdout) is written to.
  Result<> Commit(const std::string& text);

 private:
  ReportFile(std::string path, Fd stream) : path_(std::move(path)), stream_(std::move(stream)) {}
  Result<> Write(const std::string& text);
  static Result<Fd> CreateBeside(const std::string& path);

  std::string path_;
  Fd stream_;  // of path_; not valid where it is a file, to be created beside its place and renamed
};

// The report's text. After Vm::Run.
Result<std::string> RenderReport(Vm& vm, const StartupPhases& phases, const StopRequest& end);

// JSON as a report has it. Names and paths are what a person gave, and need not be UTF-8: what is not
// becomes U+FFFD.
std::string ReportText(const nlohmann::ordered_json& report);

// Bytes of our memory that are resident and no guest page: the sum of Rss in /proc/self/smaps but
// for guest RAM's mappings.
Result<uint64_t> MemoryOverhead();

}  // namespace crossbar
