// The crossbar program: picks the subcommand, prints its error, returns its status.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/sys.h"
#include "base/sys_process.h"
#include "vmm/exit_status.h"
#include "vmm/options.h"
#include "vmm/outputs.h"
#include "vmm/report.h"
#include "vmm/serve.h"
#include "vmm/vm.h"

namespace crossbar {
namespace {

constexpr const char* kUsage = R"(Crossbar: a KVM virtual machine monitor for PCI passthrough with peer-to-peer DMA

  crossbar run --kernel FILE [option...]   boot a guest; "crossbar run --help" lists the options
  crossbar serve dma|memory [option...]    serve a vfio-user device; "crossbar serve --help"
  crossbar --version
  crossbar --help
)";

int Complain(const Error& error, ExitStatus status) {
  log::WriteVerdict(error.ToString());
  return static_cast<int>(status);
}

int Refuse(Error error) {
  return Complain(std::move(error).WithHint("see crossbar run --help"), ExitStatus::kUsage);
}

// How the guest ended, and whether that could be reported.
struct Ending {
  StopRequest end;
  Result<> reported;
};

Result<Ending> RunVm(const RunOptions& options, StartupPhases& phases) {
  std::optional<ReportFile> report;
  if (!options.report.empty()) report.emplace(TRY(ReportFile::Open(options.report)));
  const std::unique_ptr<Vm> vm = TRY(Vm::Create(options, phases));
  const StopRequest end = TRY(vm->Run());
  const auto commit = [&]() -> Result<> { return report->Commit(TRY(RenderReport(*vm, phases, end))); };
  return Ending{end, report ? commit() : Result<>()};
}

// Says what went wrong at the end, and has the status to leave with. That the report is not there must not hide that the
// guest crashed, or that a mapping is still there (G5).
int Conclude(const Ending& ending) {
  using Reason = StopRequest::Reason;
  const Reason reason = ending.end.reason;
  const bool ours = reason == Reason::kGuestCrash || reason == Reason::kHostError || reason == Reason::kUnsafe;
  if (ours) log::WriteVerdict(fmt::format("{}: {}", ReasonName(reason), ending.end.detail));
  if (ending.reported) return ending.end.status;
  const int status = Complain(ending.reported.error(), ExitStatus::kHostError);
  return ours ? ending.end.status : status;
}

void ReportFailpoints(bool ran) {
  LogInfo("failpoints fired {} times", failpoints::Fired());
  if (!ran) return;  // a call that start-up did not come to is no misspelled one
  for (const failpoints::IdleRule& rule : failpoints::IdleRules())
    LogWarning("failpoint '{}' never fired: {} calls matched it", rule.text, rule.matched);
}

int Run(const std::vector<std::string>& arguments) {
  StartupPhases phases;
  Result<RunOptions> options = ParseRunOptions(arguments);
  if (!options) return Refuse(std::move(options).error());
  if (options->help) {
    fmt::print("{}", RunHelp());
    return 0;
  }
  log::SetLevel(options->log_level);
  for (const std::string& rule : options->failpoints) {
    if (Result<> armed = failpoints::Arm(rule); !armed) return Refuse(std::move(armed).error());
  }
  if (Result<> outputs = CheckOutputs(*options); !outputs) return Refuse(std::move(outputs).error());
  phases.Mark("parse");
  const Result<Ending> ending = RunVm(*options, phases);
  if (!options->failpoints.empty()) ReportFailpoints(ending.has_value());
  return ending ? Conclude(*ending) : Complain(ending.error(), ExitStatus::kHostError);
}

int RunServer(const std::vector<std::string>& arguments) {
  const auto refuse = [](Error error) {
    return Complain(std::move(error).WithHint("see crossbar serve --help"), ExitStatus::kUsage);
  };
  Result<ServeOptions> options = ParseServeOptions(arguments);
  if (!options) return refuse(std::move(options).error());
  if (options->help) {
    fmt::print("{}", ServeHelp());
    return 0;
  }
  if (Result<> socket = CheckSocket(*options); !socket) return refuse(std::move(socket).error());
  log::SetLevel(options->log_level);
  const Result<> served = Serve(*options);
  return served ? 0 : Complain(served.error(), ExitStatus::kHostError);
}

// Whoever started us may have closed a standard descriptor. A file of ours would get its number, and
// the console would write there.
void OpenStandardDescriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", O_RDWR);  // the lowest free number: fd
  }
}

// A reader that went away and a file at its size limit are errors of write, not a reason to die.
void IgnoreSignalsOfWrites() {
  for (const int signal : {SIGPIPE, SIGXFSZ}) (void)sys::SetSignalHandler(signal, SIG_IGN);
}

int Main(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "--help" : arguments.front();
  if (command == "run") return Run({arguments.begin() + 1, arguments.end()});
  if (command == "serve") return RunServer({arguments.begin() + 1, arguments.end()});
  if (command == "--version") {
    fmt::print("crossbar {}\n", CROSSBAR_VERSION);
    return 0;
  }
  if (command == "--help" || command == "-h" || command == "help") {
    if (!arguments.empty()) {
      fmt::print("{}", kUsage);
      return 0;
    }
    log::WriteStderr(kUsage);
    return static_cast<int>(ExitStatus::kUsage);
  }
  return Complain(Error::Of("there is no command '{}'", command).WithHint("see crossbar --help"),
                  ExitStatus::kUsage);
}

}  // namespace
}  // namespace crossbar

int main(int argc, char** argv) {
  crossbar::IgnoreSignalsOfWrites();
  crossbar::OpenStandardDescriptors();
  crossbar::sys::RaiseDescriptorLimit();
  try {
    return crossbar::Main({argv + 1, argv + argc});
  } catch (const std::exception& exception) {  // out of memory; nothing of ours throws
    crossbar::log::WriteVerdict(exception.what());
    return static_cast<int>(crossbar::ExitStatus::kHostError);
  }
}
