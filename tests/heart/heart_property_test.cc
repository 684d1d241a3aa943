// The property test of the heart: random operations on AddressSpace, compared after each with a
// model that was written from its contract. What `--help` prints is the documentation.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "base/log.h"
#include "tests/heart/session.h"

namespace crossbar::heart {
namespace {

constexpr const char* kUsage =
    R"(Usage: heart_property_test [--seed=N]... [--seconds=N | --operations=N] [--skip=LIST] [--hash]

  --seed=N         where the operations come from, `now`: from the time; each of several gets the same
                   share of the time (default: 1, 2, 3 and now)
  --seconds=N      how long (default: CROSSBAR_PROPERTY_SECONDS, else 60)
  --operations=N   how many operations instead; the same seed does the same ones everywhere
  --skip=LIST      leaves out operations of the first session: 3,7-12
  --hash           prints a hash of all calls that were made, and nothing else
)";

// In a run this long every class must have been hit.
constexpr uint64_t kLongRun = 1'000'000;
// An operation takes microseconds. One that is seen in so many ticks hangs; a process that was
// stopped for a while sees one when it goes on.
constexpr unsigned kTickSeconds = 20;
constexpr unsigned kHangTicks = 3;

struct Flags {
  std::vector<uint64_t> seeds;
  double seconds = 60;
  uint64_t operations = UINT64_MAX;
  std::vector<bool> skip;
  bool hash = false;
};

struct Totals {
  Coverage coverage;
  uint64_t operations = 0;
  uint64_t sessions = 0;
  uint64_t events = 0;
  uint64_t hash = 0;
};

using Clock = Model::Clock;

// What runs now, for the report; also read by the signal handler.
const char* g_program = "heart_property_test";
uint64_t g_seed = 0;
uint64_t g_operation = 0;
const Session* g_session = nullptr;
unsigned g_ticks = 0;            // within this operation
uint64_t g_sessions_before = 0;  // operations of the sessions before
bool g_shrink = true;
const Clock::time_point g_start = Clock::now();

std::string Replay(const std::string& skip) {
  return fmt::format("{} --seed={} --operations={}{}", g_program, g_seed, g_operation + 1,
                     skip.empty() ? "" : " --skip=" + skip);
}

void Report(const char* difference) {
  fmt::print("MISMATCH: seed {} operation {}\nThe last operations:\n", g_seed, g_operation);
  for (const std::string& line : g_session->history()) fmt::print("  {}\n", line);
  fmt::print("The calls of the last:\n{}Difference: {}\nReplay: {}\n", g_session->TraceText(),
             difference, Replay(""));
  fmt::print("After {} operations in all, {:.1f} s\n", g_sessions_before + g_operation + 1,
             std::chrono::duration<double>(Clock::now() - g_start).count());
  fflush(stdout);
}

void Shrink();

void OnSignal(int number) {
  if (number == SIGALRM && ++g_ticks < kHangTicks) {
    alarm(kTickSeconds);
    return;
  }
  std::signal(number, SIG_DFL);
  if (g_session != nullptr) {
    Report(number == SIGALRM ? "it hangs" : "a CHECK of the code under test");
    if (number == SIGABRT) Shrink();
  }
  std::raise(number);
}

// One session, up to `most` operations. Why it failed, if it did.
std::optional<std::string> RunSession(uint64_t seed, uint64_t most, const std::vector<bool>& skip,
                                      Totals& totals) {
  alarm(kTickSeconds);
  // Where it fails it is left as it is: its end would only hide the reason.
  auto* session = new Session(seed, totals.coverage);
  g_session = session;
  g_seed = seed;
  const uint64_t count = std::min(most, session->length());
  try {
    for (uint64_t n = 0; n < count; ++n) {
      g_operation = n;
      g_ticks = 0;
      if (n < skip.size() && skip[n]) continue;
      session->Step(n);
    }
    session->Finish();
  } catch (const Mismatch& mismatch) {
    return mismatch.what();
  }
  totals.operations += count;
  g_sessions_before = totals.operations;
  ++totals.sessions;
  totals.events += session->events();
  totals.hash = Mix(totals.hash, session->hash());
  g_session = nullptr;
  delete session;
  return std::nullopt;
}

// Whether the failing session still fails without the operations in `skip`; in a child, as it may
// crash.
bool StillFails(const std::vector<bool>& skip) {
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);
    if (freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    g_session = nullptr;
    Totals totals;
    _exit(RunSession(g_seed, g_operation + 1, skip, totals) ? 1 : 0);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && status != 0;
}

std::string ListOf(const std::vector<bool>& skip) {
  std::string text;
  for (size_t i = 0; i < skip.size(); ++i) {
    if (!skip[i]) continue;
    size_t last = i;
    while (last + 1 < skip.size() && skip[last + 1]) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", i);
    if (last != i) text += fmt::format("-{}", last);
    i = last;
  }
  return text;
}

// Leaves out as much as it can in a minute, ever smaller pieces of it.
void Shrink() {
  if (!std::exchange(g_shrink, false)) return;
  alarm(0);
  const auto give_up = Clock::now() + std::chrono::seconds(60);
  std::vector<bool> skip(g_operation);
  if (!StillFails(skip)) {
    fmt::print("It does not fail again.\n");
    return;
  }
  for (size_t size = (skip.size() + 1) / 2; size != 0; size = size == 1 ? 0 : (size + 1) / 2) {
    for (size_t start = 0; start < skip.size() && Clock::now() < give_up; start += size) {
      std::vector<bool> more = skip;
      for (size_t i = start; i < std::min(start + size, skip.size()); ++i) more[i] = true;
      if (more != skip && StillFails(more)) skip = more;
    }
  }
  const auto left = std::count(skip.begin(), skip.end(), false) + 1;
  fmt::print("Shrunk to {} operations: {}\n", left, Replay(ListOf(skip)));
  fflush(stdout);
}

// Sessions of `seed` until either runs out. False where one failed.
bool Run(uint64_t seed, const Flags& flags, double seconds, Totals& totals) {
  const auto start = Clock::now();
  uint64_t done = 0;
  for (uint64_t session = 0; done < flags.operations; ++session) {
    if (std::chrono::duration<double>(Clock::now() - start).count() > seconds) break;
    const uint64_t before = totals.operations;
    // The first is of the seed itself, so that any session can be replayed alone.
    const auto failure =
        RunSession(session == 0 ? seed : Mix(seed, session), flags.operations - done,
                   session == 0 ? flags.skip : std::vector<bool>{}, totals);
    if (failure) {
      Report(failure->c_str());
      Shrink();
      return false;
    }
    done += totals.operations - before;
  }
  alarm(0);
  return true;
}

bool ParseSkip(const char* text, std::vector<bool>& skip) {
  while (*text != 0) {
    char* end = nullptr;
    const uint64_t first = strtoull(text, &end, 10);
    uint64_t last = first;
    if (*end == '-') last = strtoull(end + 1, &end, 10);
    if (end == text || last < first || last > 1'000'000) return false;
    if (skip.size() <= last) skip.resize(last + 1);
    for (uint64_t i = first; i <= last; ++i) skip[i] = true;
    text = *end == ',' ? end + 1 : end;
    if (*end != ',' && *end != 0) return false;
  }
  return true;
}

uint64_t Seed(const std::string& text) {
  return text == "now" ? static_cast<uint64_t>(time(nullptr)) : strtoull(text.c_str(), nullptr, 0);
}

bool Parse(int argc, char** argv, Flags& flags) {
  if (const char* seconds = getenv("CROSSBAR_PROPERTY_SECONDS")) flags.seconds = atof(seconds);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const char* value = equals == std::string::npos ? "" : argv[i] + equals + 1;
    if (name == "--seed") {
      flags.seeds.push_back(Seed(value));
    } else if (name == "--seconds") {
      flags.seconds = atof(value);
    } else if (name == "--operations") {
      flags.operations = strtoull(value, nullptr, 0);
      flags.seconds = 1e9;
    } else if (name == "--skip") {
      if (!ParseSkip(value, flags.skip)) return false;
    } else if (name == "--hash") {
      flags.hash = true;
    } else {
      return false;
    }
  }
  return true;
}

int Main(int argc, char** argv) {
  g_program = argv[0];
  Flags flags;
  if (!Parse(argc, argv, flags)) {
    fmt::print("{}", kUsage);
    return 2;
  }
  g_shrink = flags.skip.empty();
  log::SetLevel(LogLevel::kError);
  std::signal(SIGABRT, OnSignal);
  std::signal(SIGALRM, OnSignal);
  if (flags.seeds.empty()) flags.seeds = {1, 2, 3, Seed("now")};
  Totals totals;
  const auto start = Clock::now();
  for (const uint64_t seed : flags.seeds) {
    if (!flags.hash) fmt::print("seed {}\n", seed);
    fflush(stdout);
    if (!Run(seed, flags, flags.seconds / static_cast<double>(flags.seeds.size()), totals)) {
      fflush(stdout);
      // Not through destructors: a session was left in the middle.
      _exit(1);
    }
  }
  if (flags.hash) {
    fmt::print("{:016x}\n", totals.hash);
    return 0;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  fmt::print(
      "{}{} operations in {} sessions, {} calls, {:.1f} s, {:.0f} operations/s, trace {:016x}\n",
      totals.coverage.ToString(), totals.operations, totals.sessions, totals.events, seconds,
      static_cast<double>(totals.operations) / seconds, totals.hash);
  const std::string missing = totals.coverage.Missing();
  if (!missing.empty()) fmt::print("Never hit: {}\n", missing);
  return !missing.empty() && totals.operations >= kLongRun ? 1 : 0;
}

}  // namespace
}  // namespace crossbar::heart

int main(int argc, char** argv) {
  return crossbar::heart::Main(argc, argv);
}
