// Start-up: from exec to the first KVM_RUN of hello.elf with 256 MiB and one vCPU.
//
// Gates: Crossbar takes at most 1.5 times as long as skeleton.cc, and at most a fifth of QEMU's q35
// machine with the same image. Where QEMU is not installed that half is not measured; with
// CROSSBAR_REQUIRE_QEMU set it fails.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "bench/first_run.h"
#include "bench/harness.h"

namespace crossbar::bench {
namespace {

constexpr int kHelloSucceeds = 1;  // 0 written to the debug-exit port

const Arguments kCrossbar = {CROSSBAR_PROGRAM, "run",  "--kernel",  CROSSBAR_GUESTS "/hello.elf",
                             "--memory",       "256M", "--console", "none"};
const Arguments kSkeleton = {CROSSBAR_SKELETON, CROSSBAR_GUESTS "/hello.elf"};

Arguments QemuArguments(const std::string& path) {
  return {
      path,          "-machine", "q35",        "-accel",  "kvm",
      "-nodefaults", "-display", "none",       "-kernel", CROSSBAR_GUESTS "/hello.elf",
      "-m",          "256",      "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"};
}

// Empty where there is none.
std::string FindInPath(const std::string& program) {
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string file = folder + "/" + program;
    if (::access(file.c_str(), X_OK) == 0) return file;
  }
  return {};
}

// What is timed up to its first KVM_RUN is a program that really runs the guest.
Result<> CheckRunsHello(const Arguments& arguments) {
  const int status = TRY(RunToEnd(arguments));
  if (status != kHelloSucceeds) return Fail("{} ended with status {}", arguments.front(), status);
  return {};
}

Sampler StartOf(const Arguments& arguments) {
  return [arguments]() -> Result<std::vector<double>> {
    return std::vector{TRY(TimeToFirstRun(arguments))};
  };
}

Result<> CompareWith(const std::string& name, const Arguments& reference, Limit limit,
                     Effort effort, Gates& gates) {
  TRY(CheckRunsHello(reference));
  const std::vector<Pairs> pairs =
      TRY(Compare(StartOf(kCrossbar), StartOf(reference), limit, effort));
  Report("startup/" + name, name, pairs.front());
  const std::string what = "start-up, Crossbar / " + name;
  gates.Ratio(what, pairs.front(), limit);
  // Noise that hits both pulls the median towards 1; the least of each has none.
  const double least = std::ranges::min(pairs.front().ours);
  gates.AtMost(what + ", least of each", least / std::ranges::min(pairs.front().reference),
               limit.ratio);
  return {};
}

Result<> Measure(Gates& gates) {
  TRY(CheckRunsHello(kCrossbar));
  TRY(CompareWith("skeleton", kSkeleton, {.ratio = 1.5},
                  {.rounds = 40, .at_most = std::chrono::seconds(20)}, gates));
  const std::string qemu = FindInPath("qemu-system-x86_64");
  if (qemu.empty()) {
    if (Required("CROSSBAR_REQUIRE_QEMU")) return Fail("qemu-system-x86_64 is not installed");
    gates.Show("start-up, Crossbar / QEMU: not measured, qemu-system-x86_64 is not installed");
    return {};
  }
  return CompareWith("QEMU", QemuArguments(qemu), {.ratio = 0.2},
                     {.rounds = 30, .at_most = std::chrono::seconds(30)}, gates);
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  return crossbar::bench::Main(argc, argv, {.before = crossbar::bench::Measure});
}
