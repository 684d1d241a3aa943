#include "base/log.h"

#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>

#include "base/sys.h"

namespace crossbar {
namespace {

constexpr int kPatienceMs = 1000;

constexpr std::array<std::string_view, 4> kLevelNames = {"error", "warning", "info", "debug"};

const std::chrono::steady_clock::time_point g_start = std::chrono::steady_clock::now();

// File names may hold newlines and what terminals obey.
std::string OneLine(std::string_view text) {
  std::string line;
  for (const char c : text) {
    if (c == '\n') {
      line += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      line += fmt::format("\\x{:02x}", c);
    } else {
      line += c;
    }
  }
  return line;
}

}  // namespace

namespace log {

std::atomic<LogLevel> g_level = LogLevel::kWarning;

Result<LogLevel> ParseLevel(std::string_view name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (name == kLevelNames[i]) return static_cast<LogLevel>(i);
  }
  return Fail("'{}' is no log level; use error, warning, info or debug", name);
}

void WriteLine(LogLevel level, std::string_view text) {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - g_start).count();
  WriteStderr(fmt::format("crossbar {:10.6f} {}: {}\n", seconds,
                          kLevelNames[static_cast<size_t>(level)], OneLine(text)));
}

void WriteVerdict(std::string_view text) {
  WriteStderr(fmt::format("crossbar: {}\n", OneLine(text)));
}

void WriteStderr(std::string_view text) {
  static std::atomic<bool> stalled = false;
  while (!text.empty()) {
    const bool room = sys::WaitForRoom(STDERR_FILENO, stalled.load(std::memory_order_relaxed) ? 0 : kPatienceMs);
    stalled.store(!room, std::memory_order_relaxed);
    if (!room) return;
    const ssize_t written = ::write(STDERR_FILENO, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace log

bool RateLimit::Allow(uint64_t* dropped) {
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::steady_clock::now().time_since_epoch())
                       .count();
  bool allowed = false;
  if (spent_.load(std::memory_order_relaxed) < kBurst) {
    allowed = spent_.fetch_add(1, std::memory_order_relaxed) < kBurst;
    if (allowed) next_second_.store(now + 1, std::memory_order_relaxed);
  }
  if (!allowed) {
    int64_t next = next_second_.load(std::memory_order_relaxed);
    allowed = now >= next &&
              next_second_.compare_exchange_strong(next, now + 1, std::memory_order_relaxed);
  }
  if (!allowed) {
    dropped_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  *dropped = dropped_.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace crossbar
