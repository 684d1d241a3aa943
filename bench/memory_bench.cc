// Memory: what Crossbar needs beside the guest's RAM, after hello.elf ran on one vCPU.
//
// Gate: resident memory without the guest's pages, as --report has it, is at most 5 MiB.
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/first_run.h"
#include "bench/harness.h"
#include "memory/address.h"

namespace crossbar::bench {
namespace {

constexpr uint64_t kLimit = 5 * kMiB;

Result<uint64_t> Overhead() {
  const std::string report = fmt::format("{}/memory-report.{}.json", CROSSBAR_SCRATCH, ::getpid());
  const int status =
      TRY(RunToEnd({CROSSBAR_PROGRAM, "run", "--kernel", CROSSBAR_GUESTS "/hello.elf", "--memory",
                    "256M", "--console", "none", "--report", report}));
  const nlohmann::json json = nlohmann::json::parse(std::ifstream(report), nullptr, false);
  ::unlink(report.c_str());
  if (status != 1) return Fail("crossbar ended with status {}", status);
  const auto path = nlohmann::json::json_pointer("/memory/overhead_bytes");
  if (json.is_discarded() || !json.contains(path)) return Fail("no overhead in the report");
  return json.at(path).get<uint64_t>();
}

Result<> Measure(Gates& gates) {
  const uint64_t bytes = TRY(Overhead());
  benchmark::RegisterBenchmark("memory/hello", [bytes](benchmark::State& state) {
    for (auto _ : state) {
    }
    state.counters["overhead_bytes"] =
        benchmark::Counter(static_cast<double>(bytes), {}, benchmark::Counter::kIs1024);
  })->Iterations(1);
  gates.AtMost("memory beside guest RAM, bytes", static_cast<double>(bytes), kLimit);
  return {};
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  return crossbar::bench::Main(argc, argv, {.before = crossbar::bench::Measure});
}
