#include "vmm/options.h"

#include <boost/program_options.hpp>

#include <cerrno>
#include <charconv>
#include <fstream>
#include <sstream>

#include "base/sys.h"

namespace crossbar {
namespace {

namespace po = boost::program_options;

constexpr std::string_view kIntro =
    R"(crossbar run: boot a guest on KVM

  crossbar run --kernel FILE [option...]

)";

constexpr std::string_view kExamples = R"(
Examples:
  crossbar run --kernel build/guests/hello.elf
  crossbar run --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --memory 2G --cpus 4
  crossbar run --kernel build/guests/echo.elf --report report.json --log debug
  crossbar run --kernel vmlinuz --initrd initrd.img --device 0000:01:00.0 --device 0000:02:00.0,id=gpu
  crossbar run --kernel build/guests/p2p_copy.elf --device model=dma,address-bits=64 --device model=memory,size=16M
  crossbar run --config vm.conf            (vm.conf: kernel = vmlinuz, one option a line)

On a terminal, Ctrl-A x ends the guest. SIGUSR1 prints which device can DMA into which BAR, and the zaps.

Exit status: 0 the guest powered off; odd: the guest's own, (value << 1 | 1), by the debug-exit port;
2 usage error; 4 host error; 6 guest crash; 8 stopped by a signal or Ctrl-A x; 10 a DMA mapping
could not be taken away.
)";

po::options_description Describe() {
  po::options_description options("Options");
  options.add_options()                                                                       //
      ("help,h", "print this help and exit")                                                  //
      ("config", po::value<std::string>()->value_name("FILE"),
       "read options from FILE, NAME = VALUE a line; the command line wins")                  //
      ("kernel", po::value<std::string>()->value_name("FILE"),
       "Linux bzImage or vmlinux, PVH ELF or Multiboot image")                                //
      ("initrd", po::value<std::string>()->value_name("FILE"), "initial RAM disk")            //
      ("module", po::value<std::vector<std::string>>()->value_name("FILE[=ARGS]"),
       "further boot module (PVH, Multiboot); may be repeated")                               //
      ("device", po::value<std::vector<std::string>>()->value_name("SPEC"),
       "PCI device to pass through: 0000:01:00.0 of the host, socket=PATH of a vfio-user server, or "
       "model=dma|memory, a server of our own; then [,id=NAME][,slot=NN][,p2p=on|off][,rom=FILE|off] and "
       "the model's options (crossbar serve --help); may be repeated")                        //
      ("cmdline", po::value<std::string>()->value_name("STR"), "kernel command line")         //
      ("memory", po::value<std::string>()->value_name("SIZE")->default_value("512M"),
       "guest RAM, with suffix K, M, G or T")                                                 //
      ("cpus", po::value<std::string>()->value_name("N")->default_value("1"), "vCPUs")        //
      ("hugepages", po::value<std::string>()->value_name("2M|1G"),
       "take guest RAM from the host's huge pages")                                           //
      ("prefault", po::bool_switch(), "touch all guest RAM before the guest starts")          //
      ("console", po::value<std::string>()->value_name("WHERE")->default_value("stdio"),
       "serial console: stdio, file:PATH or none")                                            //
      ("report", po::value<std::string>()->value_name("FILE"),
       "write a JSON report of start-up times, memory and memslots at the end")               //
      ("log", po::value<std::string>()->value_name("LEVEL")->default_value("warning"),
       "error, warning, info, debug or trace, on stderr")                                     //
      ("failpoint", po::value<std::vector<std::string>>()->value_name("RULE"),
       "make a system call fail: NAME[#N]=ERRNO[*COUNT] or NAME[#N]=delay(US); may be repeated");
  return options;
}

Result<unsigned> ParseCpus(const std::string& text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0)
    return Fail("--cpus '{}' is not a number from 1 up", text);
  return value;
}

Result<PageSize> ParsePageSize(const std::string& text) {
  if (text == "2M") return PageSize::k2M;
  if (text == "1G") return PageSize::k1G;
  return Fail("--hugepages '{}' is not 2M or 1G", text);
}

constexpr std::string_view kConsoleFile = "file:";

Result<> CheckConsole(const std::string& text) {
  if (text == "stdio" || text == "none") return {};
  if (text.starts_with(kConsoleFile) && text.size() > kConsoleFile.size()) return {};
  return Fail("--console '{}' is not stdio, file:PATH or none", text);
}

Result<> ParseConfigFile(const std::string& path, const po::options_description& options,
                         po::variables_map& values) {
  std::ifstream file(path);
  file.peek();  // a folder can be opened, and only reading it fails
  if (!file && !file.eof())
    return Fail("cannot read config file {}: {}", path, sys::ErrnoText(errno));
  try {
    const auto parsed = po::parse_config_file(file, options);
    for (const auto& option : parsed.options) {
      if (option.string_key == "config") return Fail("{}: a config file cannot name another", path);
    }
    po::store(parsed, values);
  } catch (const po::error& error) {
    return Fail("{}: {}", path, error.what());
  }
  return {};
}

Result<po::variables_map> Parse(const std::vector<std::string>& arguments) {
  const po::options_description options = Describe();
  po::variables_map values;
  // Boost reports by exceptions; they end here.
  try {
    // No positional arguments, and no guessing of abbreviated names: scripts must stay right.
    namespace style = po::command_line_style;
    const po::parsed_options parsed = po::command_line_parser(arguments)
                                          .options(options)
                                          .style(style::unix_style & ~style::allow_guessing)
                                          .run();
    for (const po::option& option : parsed.options) {
      if (option.position_key >= 0) return Fail("'{}' is no option", option.value.front());
    }
    po::store(parsed, values);
    if (values.contains("config"))
      TRY(ParseConfigFile(values["config"].as<std::string>(), options, values));
  } catch (const po::error& error) {
    return Fail("{}", error.what());
  }
  return values;
}

}  // namespace

std::string RunOptions::console_file() const {
  return console.starts_with(kConsoleFile) ? console.substr(kConsoleFile.size()) : "";
}

Result<uint64_t> ParseSize(const std::string& text) {
  double number = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number, std::chars_format::fixed);
  const std::string_view suffix(end, static_cast<size_t>(last - end));
  double unit = 0;
  if (suffix.empty()) unit = 1;
  if (suffix == "K" || suffix == "k") unit = kKiB;
  if (suffix == "M" || suffix == "m") unit = kMiB;
  if (suffix == "G" || suffix == "g") unit = kGiB;
  if (suffix == "T" || suffix == "t") unit = 1024.0 * kGiB;
  const double bytes = number * unit;
  if (error != std::errc() || unit == 0 || !(bytes >= 1) || bytes >= 0x1p62)
    return Fail("'{}' is not a size such as 512M or 3.5G", text);
  return static_cast<uint64_t>(bytes);
}

Result<RunOptions> ParseRunOptions(const std::vector<std::string>& arguments) {
  const po::variables_map values = TRY(Parse(arguments));
  RunOptions options;
  const auto text = [&](const char* name) {
    return values.contains(name) ? values[name].as<std::string>() : std::string();
  };
  const auto list = [&](const char* name) {
    return values.contains(name) ? values[name].as<std::vector<std::string>>()
                                 : std::vector<std::string>();
  };
  options.help = values.contains("help");
  if (options.help) return options;

  options.kernel = text("kernel");
  if (options.kernel.empty()) return Fail("--kernel FILE is missing");
  options.initrd = text("initrd");
  options.command_line = text("cmdline");
  options.config = text("config");
  options.console = text("console");
  TRY(CheckConsole(options.console));
  options.report = text("report");
  if (values.contains("report") && options.report.empty()) return Fail("--report FILE is empty");
  options.prefault = values["prefault"].as<bool>();
  for (const std::string& module : list("module")) {
    const size_t equals = module.find('=');
    options.modules.push_back(
        {module.substr(0, equals), equals == std::string::npos ? "" : module.substr(equals + 1)});
  }
  for (const std::string& device : list("device"))
    options.devices.push_back(
        TRY(Within(ParseDeviceSpec(device), [&] { return fmt::format("--device {}", device); })));
  options.failpoints = list("failpoint");
  options.memory_bytes = TRY(Within(ParseSize(text("memory")), [] { return "--memory"; }));
  options.cpus = TRY(ParseCpus(text("cpus")));
  if (values.contains("hugepages")) options.pages = TRY(ParsePageSize(text("hugepages")));
  options.log_level = TRY(Within(log::ParseLevel(text("log")), [] { return "--log"; }));
  if (!IsAligned(options.memory_bytes, static_cast<uint64_t>(options.pages)))
    return Fail("--memory {} is not a multiple of the page size, {} KiB", text("memory"),
                static_cast<uint64_t>(options.pages) / kKiB);
  return options;
}

std::string RunHelp() {
  std::ostringstream text;
  text << kIntro << Describe() << kExamples;
  return text.str();
}

}  // namespace crossbar
