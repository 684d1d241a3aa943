#include "base/failpoint.h"

#include <fmt/format.h>
#include <string.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

#include "base/locks.h"

namespace crossbar::failpoints {

namespace internal {
std::atomic<bool> g_active = false;
}  // namespace internal

namespace {

struct Rule {
  std::string text;
  std::string name;
  uint64_t first = 1;  // 1-based call number from which on it fires
  uint64_t count = std::numeric_limits<uint64_t>::max();
  int error = 0;
  std::chrono::microseconds delay{0};
  bool skip = false;
  uint64_t seen = 0;
  bool fired = false;
};

struct State {
  Mutex mutex;
  std::vector<Rule> rules GUARDED_BY(mutex);
  std::map<std::string, uint64_t, std::less<>> census GUARDED_BY(mutex);
  bool counting GUARDED_BY(mutex) = false;
  uint64_t fired GUARDED_BY(mutex) = 0;
};

State& GetState() {
  static State state;
  return state;
}

Result<uint64_t> ParseNumber(std::string_view text, std::string_view what) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return Fail("failpoint: '{}' is no {}", text, what);
  return value;
}

Result<int> ParseErrno(std::string_view text) {
  for (int code = 1; code < 134; ++code) {
    const char* name = ::strerrorname_np(code);
    if (name != nullptr && text == name) return code;
  }
  const uint64_t number = TRY(ParseNumber(text, "errno name or number, such as EIO"));
  if (number == 0 || number > 133) return Fail("failpoint: errno {} is out of 1..133", number);
  return static_cast<int>(number);
}

Result<> ParseAction(std::string_view action, Rule& rule) {
  constexpr std::string_view kDelay = "delay(";
  if (action.starts_with(kDelay) && action.ends_with(')')) {
    action.remove_prefix(kDelay.size());
    action.remove_suffix(1);
    rule.delay = std::chrono::microseconds(TRY(ParseNumber(action, "number of microseconds")));
    return {};
  }
  if (action == "skip") {
    rule.skip = true;
    return {};
  }
  if (const size_t star = action.find('*'); star != std::string_view::npos) {
    rule.count = TRY(ParseNumber(action.substr(star + 1), "count"));
    action = action.substr(0, star);
  }
  rule.error = TRY(ParseErrno(action));
  return {};
}

Result<Rule> ParseRule(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0)
    return Fail("failpoint '{}' is not of the form NAME[#N]=ERRNO[*COUNT], NAME[#N]=delay(US) or NAME[#N]=skip",
                text);
  Rule rule;
  rule.text = text;
  std::string_view name = text.substr(0, equals);
  if (const size_t hash = name.find('#'); hash != std::string_view::npos) {
    rule.first = TRY(ParseNumber(name.substr(hash + 1), "call number"));
    if (rule.first == 0) return Fail("failpoint '{}': calls are counted from 1", text);
    name = name.substr(0, hash);
  }
  rule.name = name;
  TRY(ParseAction(text.substr(equals + 1), rule));
  return rule;
}

}  // namespace

int internal::HitSlow(std::string_view name, bool may_skip) {
  State& state = GetState();
  int error = 0;
  std::chrono::microseconds delay{0};
  {
    MutexLock lock(state.mutex);
    if (state.counting) {
      auto it = state.census.find(name);
      if (it == state.census.end()) it = state.census.emplace(name, 0).first;
      ++it->second;
    }
    for (Rule& rule : state.rules) {
      if (rule.name != "*" && rule.name != name) continue;
      ++rule.seen;
      if (rule.seen < rule.first || rule.seen - rule.first >= rule.count) continue;
      ++state.fired;
      rule.fired = true;
      delay += rule.delay;
      if (rule.error != 0 && error == 0) error = rule.error;
      if (rule.skip && may_skip && error == 0) error = kSkip;
    }
  }
  if (delay.count() != 0) std::this_thread::sleep_for(delay);
  return error;
}

Result<> Arm(std::string_view text) {
  Rule rule = TRY(ParseRule(text));
  State& state = GetState();
  MutexLock lock(state.mutex);
  state.rules.push_back(std::move(rule));
  internal::g_active.store(true, std::memory_order_relaxed);
  return {};
}

Result<> Check(std::string_view text) {
  TRY(ParseRule(text));
  return {};
}

void StartCensus() {
  State& state = GetState();
  MutexLock lock(state.mutex);
  state.census.clear();
  state.counting = true;
  internal::g_active.store(true, std::memory_order_relaxed);
}

std::map<std::string, uint64_t, std::less<>> Census() {
  State& state = GetState();
  MutexLock lock(state.mutex);
  return state.census;
}

uint64_t Fired() {
  State& state = GetState();
  MutexLock lock(state.mutex);
  return state.fired;
}

std::vector<IdleRule> IdleRules() {
  State& state = GetState();
  MutexLock lock(state.mutex);
  std::vector<IdleRule> idle;
  for (const Rule& rule : state.rules) {
    if (!rule.fired) idle.push_back({rule.text, rule.seen});
  }
  return idle;
}

void Reset() {
  State& state = GetState();
  MutexLock lock(state.mutex);
  internal::g_active.store(false, std::memory_order_relaxed);
  state.rules.clear();
  state.census.clear();
  state.counting = false;
  state.fired = 0;
}

}  // namespace crossbar::failpoints
