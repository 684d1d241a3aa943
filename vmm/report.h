// Report: what --report writes, as JSON. docs/report.md describes the fields.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "vmm/phases.h"
#include "vmm/stop.h"
#include "vmm/vm.h"

namespace crossbar {

// The file of a report. Made before the VM, so that a path that cannot be written is an error at
// once; unless Commit succeeds, nothing is left behind.
class ReportFile {
 public:
  static Result<ReportFile> Open(const std::string& path);
  ReportFile(ReportFile&& other) noexcept;
  ReportFile& operator=(ReportFile&&) = delete;
  ~ReportFile();

  Result<> Commit(const std::string& text);

 private:
  ReportFile(std::string path, std::string temporary, Fd fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(std::move(fd)) {}

  std::string path_;
  std::string temporary_;  // renamed to path_; empty: fd_ is path_ itself (a device or a pipe)
  Fd fd_;
};

// The report's text. After Vm::Run.
Result<std::string> RenderReport(Vm& vm, const StartupPhases& phases, const StopRequest& end);

// Bytes of our memory that are resident and no guest page: the sum of Rss in /proc/self/smaps but
// for guest RAM's mappings.
Result<uint64_t> MemoryOverhead();

}  // namespace crossbar
