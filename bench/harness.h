// What every benchmark program shares: its main, facts about the machine, and gates.
//
// A program measures, Google Benchmark reports (console, --benchmark_out), and a gate that does not
// hold makes the exit status 1. Main thread only.
#pragma once

#include <benchmark/benchmark.h>
#include <sched.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/contest.h"

namespace crossbar::bench {

class Gates {
 public:
  void Ratio(const std::string& name, const Pairs& pairs, Limit limit);
  void AtMost(const std::string& name, double value, double limit);
  void Equal(const std::string& name, double value, double wanted);
  // Said beside the gates, and no gate: a ratio for comparison, or what could not be measured and
  // why.
  void Show(const std::string& name, const Pairs& pairs);
  void Show(const std::string& text);

  // Prints all of them; false where one does not hold.
  bool Print() const;

 private:
  struct Gate {
    std::string text;
    std::optional<bool> holds;  // nothing: no gate
  };
  std::vector<Gate> gates_;
};

// What Google Benchmark measured: of its repetitions the least (UseLeast), which other work on the
// machine disturbs least, by the names of its runs.
class Results : public benchmark::ConsoleReporter {
 public:
  struct Run {
    double seconds = 0;
    std::map<std::string, double> counters;
  };
  void ReportRuns(const std::vector<benchmark::BenchmarkReporter::Run>& runs) override;
  // Nothing where the run did not take place (--benchmark_filter).
  std::optional<Run> Find(const std::string& name) const;

 private:
  std::map<std::string, Run> runs_;
};

void UseLeast(benchmark::internal::Benchmark* benchmark);

// Hands samples taken elsewhere (seconds, one a repetition) to Google Benchmark for its report.
void Report(const std::string& name, std::span<const double> samples);
// As Report of both sides, "name/crossbar" and "name/REFERENCE".
void Report(const std::string& name, const std::string& reference, const Pairs& pairs);

struct Program {
  bool needs_kvm = true;
  // Measures what Google Benchmark cannot (contests). Empty: nothing.
  std::function<Result<>(Gates&)> before{};
  // Judges what Google Benchmark measured. Empty: nothing.
  std::function<void(const Results&, Gates&)> after{};
};

// The exit status: 0, 1 where a gate does not hold or nothing could be measured, 77 for "skipped".
int Main(int argc, char** argv, const Program& program);

// Seconds.
template <typename Work>
double Timed(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Both sides of a contest of wake-ups on one CPU: whether the scheduler spreads their threads over CPUs
// or not makes ten times more of a difference than what is measured, and comes and goes.
class OneCpu {
 public:
  OneCpu();
  OneCpu(const OneCpu&) = delete;
  OneCpu& operator=(const OneCpu&) = delete;
  ~OneCpu();

 private:
  cpu_set_t before_;
};

// Whether an environment variable that makes a missing tool a failure is set (scripts/test --ci).
bool Required(const char* variable);

}  // namespace crossbar::bench
