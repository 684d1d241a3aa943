#include "vmm/prefault.h"

#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "base/log.h"

namespace crossbar {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kQuietFor = std::chrono::seconds(1);
constexpr auto kLineEvery = std::chrono::seconds(5);
constexpr size_t kBarWidth = 40;

class Progress {
 public:
  explicit Progress(uint64_t total) : total_(total) {}
  ~Progress() {
    if (shown_ && terminal_) log::WriteStderr("\n");
  }

  void Update(uint64_t done) {
    const auto now = Clock::now();
    if (now - start_ < kQuietFor) return;
    if (!terminal_ && shown_ && now - last_ < kLineEvery) return;
    shown_ = true;
    last_ = now;
    const std::string figures = fmt::format("guest RAM {} of {} MiB", done / kMiB, total_ / kMiB);
    if (!terminal_) return log::WriteStderr(fmt::format("crossbar: {}\n", figures));
    const size_t filled = kBarWidth * done / total_;
    log::WriteStderr(fmt::format("\r[{}{}] {}", std::string(filled, '#'), std::string(kBarWidth - filled, '.'),
                      figures));
  }

 private:
  const uint64_t total_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_;
  const bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
};

}  // namespace

Result<> PrefaultWithProgress(const GuestRam& ram) {
  Progress progress(ram.size());
  return ram.Prefault(std::thread::hardware_concurrency(),
                      [&](uint64_t done) { progress.Update(done); });
}

}  // namespace crossbar
