#include "vmm/serve.h"

#include <signal.h>

#include <boost/program_options.hpp>

#include <cstdlib>
#include <memory>
#include <sstream>

#include "base/sys.h"
#include "base/sys_socket.h"
#include "base/thread.h"
#include "devices/vfio_user/device_server.h"
#include "devices/vfio_user/memory_device.h"
#include "vmm/exit_status.h"
#include "vmm/options.h"

namespace crossbar {
namespace {

namespace po = boost::program_options;
using vfio_user::DmaDevice;

constexpr std::string_view kIntro =
    R"(crossbar serve: a PCI device in a process of its own, for any vfio-user client

  crossbar serve dma --socket PATH [option...]       DMA engine, compatible with QEMU's edu device
  crossbar serve memory --socket PATH [option...]    memory in a BAR, as QEMU's ivshmem-plain

)";

constexpr std::string_view kExamples = R"(
Examples:
  crossbar serve memory --socket /run/memory.sock --size 16M
  crossbar serve dma --socket /run/dma.sock --address-bits 64 --buffer 1M
  crossbar serve dma --socket /run/dma.sock --channels 4 --msix --flr af

With --socket it serves one client after the other until a signal stops it, with --socket-fd one.
Exit status: 0 the client of --socket-fd hung up; 2 usage error; 4 host error; 8 stopped by SIGINT,
SIGTERM or SIGHUP (--socket).
)";

po::options_description Describe() {
  using Text = std::string;
  po::options_description options("Options");
  options.add_options()                                                                      //
      ("help,h", "print this help and exit")                                                 //
      ("socket", po::value<Text>()->value_name("PATH"), "UNIX socket to listen at")          //
      ("socket-fd", po::value<int>()->value_name("N"),
       "serve the one client at the other end of an inherited socket, and exit with it")     //
      ("size", po::value<Text>()->value_name("SIZE")->default_value("16M"),
       "memory: size of the BAR, a power of two")                                            //
      ("buffer", po::value<Text>()->value_name("SIZE")->default_value("4K"),
       "dma: size of its buffer")                                                            //
      ("address-bits", po::value<int>()->value_name("N")->default_value(28),
       "dma: addresses it can reach")                                                        //
      ("channels", po::value<int>()->value_name("N")->default_value(1), "dma: channels")  //
      ("msix", po::bool_switch(), "dma: MSI-X beside MSI, a vector for each channel")        //
      ("flr", po::value<Text>()->value_name("af|pcie"), "function-level reset")              //
      ("log", po::value<Text>()->value_name("LEVEL")->default_value("warning"),
       "error, warning, info or debug, on stderr");
  return options;
}

Result<po::variables_map> Parse(const std::vector<std::string>& arguments) {
  const po::options_description options = Describe();
  po::variables_map values;
  // Boost reports by exceptions; they end here.
  try {
    namespace style = po::command_line_style;
    const po::parsed_options parsed = po::command_line_parser(arguments)
                                          .options(options)
                                          .style(style::unix_style & ~style::allow_guessing)
                                          .run();
    for (const po::option& option : parsed.options) {
      if (option.position_key >= 0) return Fail("'{}' is no option", option.value.front());
    }
    po::store(parsed, values);
  } catch (const po::error& error) {
    return Fail("{}", error.what());
  }
  return values;
}

Result<DmaDevice::FunctionReset> ParseFunctionReset(const std::string& text) {
  if (text == "af") return DmaDevice::FunctionReset::kAf;
  if (text == "pcie") return DmaDevice::FunctionReset::kPcie;
  return Fail("--flr '{}' is not af or pcie", text);
}

Result<std::unique_ptr<vfio_user::ServedDevice>> MakeDevice(const ServeOptions& options) {
  if (options.model == "memory") return TRY(vfio_user::MemoryDevice::Create(options.size, options.reset));
  return TRY(DmaDevice::Create(options.dma));
}

sigset_t EndingSignals() {
  sigset_t ends;
  ::sigemptyset(&ends);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&ends, signal);
  return ends;
}

// A thread that takes the socket's name away with the process.
Result<> EndOnSignal(const std::string& path) {
  const auto wait = [path] {
    const sigset_t ends = EndingSignals();
    int signal = 0;
    while (::sigwait(&ends, &signal) != 0) {
    }
    (void)sys::Unlink(path);
    std::_Exit(static_cast<int>(ExitStatus::kStopped));
  };
  TRY(StartThread("signals", wait)).detach();
  return {};
}

}  // namespace

Result<ServeOptions> ParseServeOptions(const std::vector<std::string>& arguments) {
  ServeOptions options;
  if (arguments.empty()) return Fail("which device? dma or memory");
  const bool help_first = arguments.front() == "--help" || arguments.front() == "-h";
  const po::variables_map values =
      TRY(Parse({arguments.begin() + (help_first ? 0 : 1), arguments.end()}));
  options.help = values.contains("help");
  if (options.help) return options;
  options.model = arguments.front();
  if (options.model != "dma" && options.model != "memory")
    return Fail("there is no device '{}': dma or memory", options.model);
  if (values.contains("socket")) options.socket = values["socket"].as<std::string>();
  if (values.contains("socket-fd")) options.socket_fd = values["socket-fd"].as<int>();
  if (options.socket.empty() && options.socket_fd < 0) return Fail("--socket PATH is missing");
  if (!options.socket.empty() && options.socket_fd >= 0) return Fail("give either --socket or --socket-fd");
  const auto size = [&](const char* name) {
    return Within(ParseSize(values[name].as<std::string>()), [&] { return fmt::format("--{}", name); });
  };
  const auto number = [&](const char* name) -> Result<unsigned> {
    const int value = values[name].as<int>();
    if (value < 0) return Fail("--{}: '{}' is not a number from 0 up", name, value);
    return static_cast<unsigned>(value);
  };
  options.size = TRY(size("size"));
  if (options.model == "memory")
    TRY(Within(vfio_user::MemoryDevice::CheckSize(options.size), [] { return "--size"; }));
  options.dma.buffer_size = TRY(size("buffer"));
  options.dma.address_bits = TRY(number("address-bits"));
  options.dma.channels = TRY(number("channels"));
  options.dma.msix = values["msix"].as<bool>();
  if (values.contains("flr"))
    options.reset = TRY(ParseFunctionReset(values["flr"].as<std::string>()));
  options.dma.reset = options.reset;
  if (options.model == "dma") TRY(DmaDevice::Check(options.dma));
  options.log_level =
      TRY(Within(log::ParseLevel(values["log"].as<std::string>()), [] { return "--log"; }));
  return options;
}

std::string ServeHelp() {
  std::ostringstream text;
  text << kIntro << Describe() << kExamples;
  return text.str();
}

Result<> CheckSocket(const ServeOptions& options) {
  if (options.socket_fd < 0 || sys::IsUnixStream(options.socket_fd)) return {};
  return Fail("--socket-fd {}: no UNIX stream socket was inherited as that", options.socket_fd);
}

Result<> Serve(const ServeOptions& options) {
  const sigset_t ends = EndingSignals();
  // Before there is another thread, and until the name is ours.
  if (!options.socket.empty()) ::pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  const std::unique_ptr<vfio_user::ServedDevice> device = TRY(MakeDevice(options));
  vfio_user::DeviceServer server(*device);
  if (options.socket_fd >= 0) return server.Serve(Fd(options.socket_fd));
  const Fd listener = TRY(sys::ListenUnix(options.socket));
  TRY(EndOnSignal(options.socket));
  LogInfo("serving {} at {}", options.model, options.socket);
  while (true) {
    Fd client = TRY(sys::Accept(listener.get()));
    const Result<> served = server.Serve(std::move(client));
    if (!served) LogWarning("a client was dropped: {}", served.error().message());
  }
}

}  // namespace crossbar
