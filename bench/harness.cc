#include "bench/harness.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "base/check.h"
#include "base/sys.h"

namespace crossbar::bench {
namespace {

constexpr int kSkipped = 77;
constexpr const char* kLeast = "least";

// "pvm", "intel", "amd": whose KVM this is decides what the figures mean.
std::string KvmVendor() {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/module", ignored)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("kvm_")) return name.substr(4);
  }
  return "unknown";
}

std::string Commit() {
  // Takes no lock and refreshes no index: it may run beside somebody's git.
  FILE* const pipe = ::popen("git --no-optional-locks -c safe.directory='*' -C '" CROSSBAR_SOURCE
                             "' describe --always --dirty 2>/dev/null",
                             "re");
  if (pipe == nullptr) return "unknown";
  char line[128] = "";
  const bool read = std::fgets(line, sizeof line, pipe) != nullptr;
  ::pclose(pipe);
  std::string commit = read ? line : "unknown";
  if (commit.ends_with('\n')) commit.pop_back();
  return commit;
}

void AddFacts() {
  utsname system{};
  ::uname(&system);
  benchmark::AddCustomContext("kernel", system.release);
  benchmark::AddCustomContext("kvm_vendor", KvmVendor());
  benchmark::AddCustomContext("commit", Commit());
}

// Where it is allowed: other work on the machine then disturbs less. Children inherit it.
void TakePriority() {
  ::setpriority(PRIO_PROCESS, 0, -20);
}

// 0, or the status to end with.
int CheckKvm() {
  const Result<Fd> kvm = sys::Open("/dev/kvm", O_RDWR);
  if (kvm) return 0;
  const bool required = Required("CROSSBAR_REQUIRE_KVM");
  fmt::print("{}: {}\n", required ? "failed" : "skipped", kvm.error().ToString());
  return required ? 1 : kSkipped;
}

std::string RatioText(const Pairs& pairs) {
  const Interval ratio = pairs.Ratio();
  return fmt::format("{:.3f} (95% {:.3f} to {:.3f}, {} rounds)", ratio.median, ratio.low,
                     ratio.high, pairs.ours.size());
}

}  // namespace

void Gates::Ratio(const std::string& name, const Pairs& pairs, Limit limit) {
  gates_.push_back(
      {fmt::format("{}: {}, {} at most {:.3f}", name, RatioText(pairs),
                   limit.on == Limit::On::kUpperBound ? "all of it" : "the median", limit.ratio),
       limit.Allows(pairs.Ratio())});
}

void Gates::AtMost(const std::string& name, double value, double limit) {
  gates_.push_back({fmt::format("{}: {:.6g}, at most {:.6g}", name, value, limit), value <= limit});
}

void Gates::Equal(const std::string& name, double value, double wanted) {
  gates_.push_back(
      {fmt::format("{}: {:.6g}, exactly {:.6g}", name, value, wanted), value == wanted});
}

void Gates::Show(const std::string& name, const Pairs& pairs) {
  gates_.push_back({fmt::format("{}: {}", name, RatioText(pairs)), {}});
}

void Gates::Show(const std::string& text) {
  gates_.push_back({text, {}});
}

bool Gates::Print() const {
  bool all = true;
  fmt::print("\nGates:\n");
  for (const Gate& gate : gates_) {
    fmt::print("  {}  {}\n", !gate.holds ? "    " : *gate.holds ? "ok  " : "FAIL", gate.text);
    all = all && gate.holds.value_or(true);
  }
  return all;
}

void Results::ReportRuns(const std::vector<benchmark::BenchmarkReporter::Run>& runs) {
  for (const auto& run : runs) {
    if (run.aggregate_name != kLeast) continue;
    Run& result = runs_[run.run_name.str()];
    result.seconds = run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit);
    for (const auto& [name, counter] : run.counters) result.counters[name] = counter.value;
  }
  ConsoleReporter::ReportRuns(runs);
}

std::optional<Results::Run> Results::Find(const std::string& name) const {
  const auto found = runs_.find(name);
  if (found == runs_.end()) return std::nullopt;
  return found->second;
}

void UseLeast(benchmark::internal::Benchmark* benchmark) {
  benchmark->ComputeStatistics(
      kLeast, [](const std::vector<double>& values) { return *std::ranges::min_element(values); });
}

void Report(const std::string& name, std::span<const double> samples) {
  auto next = [samples = std::vector(samples.begin(), samples.end()),
               at = std::make_shared<size_t>(0)](benchmark::State& state) {
    for (auto _ : state) state.SetIterationTime(samples[(*at)++ % samples.size()]);
  };
  benchmark::RegisterBenchmark(name.c_str(), std::move(next))
      ->Repetitions(static_cast<int>(samples.size()))
      ->Iterations(1)
      ->UseManualTime()
      ->DisplayAggregatesOnly()
      ->Unit(samples.front() < 1e-6 ? benchmark::kNanosecond : benchmark::kMicrosecond);
}

void Report(const std::string& name, const std::string& reference, const Pairs& pairs) {
  Report(name + "/crossbar", pairs.ours);
  Report(name + "/" + reference, pairs.reference);
}

int Main(int argc, char** argv, const Program& program) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  if (program.needs_kvm) {
    if (const int status = CheckKvm(); status != 0) return status;
  }
  TakePriority();
  AddFacts();
  Gates gates;
  if (program.before) {
    if (const Result<> measured = program.before(gates); !measured) {
      fmt::print(stderr, "{}\n", measured.error().ToString());
      return 1;
    }
  }
  Results results;
  benchmark::RunSpecifiedBenchmarks(&results);
  if (program.after) program.after(results, gates);
  return gates.Print() ? 0 : 1;
}

OneCpu::OneCpu() {
  CHECK(::sched_getaffinity(0, sizeof before_, &before_) == 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(::sched_getcpu()), &one);
  CHECK(::sched_setaffinity(0, sizeof one, &one) == 0);
}

OneCpu::~OneCpu() { (void)::sched_setaffinity(0, sizeof before_, &before_); }

bool Required(const char* variable) {
  return std::getenv(variable) != nullptr;
}

}  // namespace crossbar::bench
