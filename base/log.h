// Logging to stderr: a level, a time since start, one line. Any thread; a line is written whole.
//
// A fact is logged once, with its numbers, where it is known; errors are propagated (base/result.h)
// and printed by main. Lines that a guest can cause at will go through a RateLimit.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace crossbar {

enum class LogLevel : uint8_t { kError, kWarning, kInfo, kDebug };

namespace log {

extern std::atomic<LogLevel> g_level;
inline void SetLevel(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
inline bool Enabled(LogLevel level) { return level <= g_level.load(std::memory_order_relaxed); }
Result<LogLevel> ParseLevel(std::string_view name);
void WriteLine(LogLevel level, std::string_view text);

// "crossbar: TEXT", as one line whatever TEXT holds: what main says at the end.
void WriteVerdict(std::string_view text);
// Text as it is. One write for up to PIPE_BUF bytes, so that lines of several threads do not mix. Whoever does not read our
// stderr must hold up neither a vCPU nor a zap: it waits a second for room, and then drops what there is no room for. If it
// fails there is nobody to tell, and it must not change how the program ends: it neither throws nor raises a signal, SIGPIPE
// and SIGXFSZ being ignored by main.
void WriteStderr(std::string_view text);

}  // namespace log

// Lets the first `kBurst` lines through, then one a second, and counts what it dropped. One per
// place that logs (a static or a member); any thread.
class RateLimit {
 public:
  static constexpr unsigned kBurst = 5;

  // Whether to log now; `dropped` becomes the number of lines withheld since the last one let
  // through.
  bool Allow(uint64_t* dropped);

 private:
  std::atomic<uint64_t> spent_ = 0;
  std::atomic<int64_t> next_second_ = 0;
  std::atomic<uint64_t> dropped_ = 0;
};

template <typename... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log::Enabled(level)) [[unlikely]]
    log::WriteLine(level, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> f, Args&&... a) {
  Log(LogLevel::kError, f, std::forward<Args>(a)...);
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> f, Args&&... a) {
  Log(LogLevel::kWarning, f, std::forward<Args>(a)...);
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> f, Args&&... a) {
  Log(LogLevel::kInfo, f, std::forward<Args>(a)...);
}
template <typename... Args>
void LogDebug(fmt::format_string<Args...> f, Args&&... a) {
  Log(LogLevel::kDebug, f, std::forward<Args>(a)...);
}

// What a guest did, within `limit`.
template <typename... Args>
void LogGuestAt(LogLevel level, RateLimit& limit, fmt::format_string<Args...> format, Args&&... args) {
  if (!log::Enabled(level)) return;
  uint64_t dropped = 0;
  if (!limit.Allow(&dropped)) return;
  std::string text = fmt::format(format, std::forward<Args>(args)...);
  if (dropped != 0) text += fmt::format(" ({} like it not shown)", dropped);
  log::WriteLine(level, text);
}
template <typename... Args>
void LogGuest(RateLimit& limit, fmt::format_string<Args...> f, Args&&... a) {
  LogGuestAt(LogLevel::kWarning, limit, f, std::forward<Args>(a)...);
}

}  // namespace crossbar
