#include "vmm/options.h"

#include <boost/program_options.hpp>

#include <algorithm>
#include <charconv>
#include <set>
#include <sstream>

#include "base/failpoint.h"
#include "base/sys.h"
#include "boot/platform_info.h"

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
2 usage error; 4 host error; 6 guest crash; 8 stopped by a signal or Ctrl-A x; 10 a DMA mapping, a
memslot or an ioeventfd could not be taken away.
)";

po::options_description Describe() {
  po::options_description options("Options");
  options.add_options()                                                                       //
      ("help,h", "print this help and exit")                                                  //
      ("config", po::value<std::string>()->value_name("FILE"),
       "read options from FILE: NAME = VALUE a line (prefault = true); a line that starts with # is a comment; "
       "the command line wins")  //
      ("kernel", po::value<std::string>()->value_name("FILE"),
       "Linux bzImage or vmlinux, PVH ELF or Multiboot image")                                //
      ("initrd", po::value<std::string>()->value_name("FILE"), "initial RAM disk")            //
      ("module", po::value<std::vector<std::string>>()->value_name("FILE[=ARGS]"),
       "further boot module (PVH, Multiboot); may be repeated")                               //
      ("device", po::value<std::vector<std::string>>()->value_name("SPEC"),
       "PCI device to pass through: 0000:01:00.0 of the host, socket=PATH of a vfio-user server, or "
       "model=dma|memory, a server of our own; then [,id=NAME][,port=NAME][,slot=NN] [,p2p=on|off]"
       "[,rom=FILE|off][,fault=CAUSE@SECONDS] and the model's options (crossbar serve --help); devices with "
       "one port= are functions behind a PCIe root port, without it they are on the root bus; fault= injects "
       "device-error, device-gone, wanted-back, function-reset or decode-off (for a moment) so long after the "
       "devices are connected; may be repeated")  //
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
       "write a JSON report at the end: start-up times, memory, memslots, P2P matrix, zaps")               //
      ("log", po::value<std::string>()->value_name("LEVEL")->default_value("warning"),
       "error, warning, info or debug, on stderr")                                            //
      ("failpoint", po::value<std::vector<std::string>>()->value_name("RULE"),
       "make a system call, or the ioctl of that NAME, fail or wait: NAME[#N]=ERRNO[*COUNT] or NAME[#N]=delay(US); "
       "leave an ioctl out: NAME[#N]=skip; * is any NAME; may be repeated");
  return options;
}

Result<unsigned> ParseCpus(const std::string& text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0)
    return Fail("'{}' is not a number from 1 up", text);
  if (value > kX86MostCpus)
    return Fail("{} is more than 8-bit APIC ids can name; give at most {}", value, kX86MostCpus);
  return value;
}

Result<PageSize> ParsePageSize(const std::string& text) {
  if (text == "2M") return PageSize::k2M;
  if (text == "1G") return PageSize::k1G;
  return Fail("'{}' is not 2M or 1G", text);
}

Result<uint64_t> ParseMemory(const std::string& text, PageSize pages) {
  const uint64_t bytes = TRY(ParseSize(text));
  if (!IsAligned(bytes, static_cast<uint64_t>(pages)))
    return Fail("{} is not a multiple of the page size, {} KiB", text,
                static_cast<uint64_t>(pages) / kKiB);
  if (bytes < kX86LeastMemory)
    return Fail("{} KiB are too little to boot a kernel; give at least {} MiB", bytes / kKiB,
                kX86LeastMemory / kMiB);
  return bytes;
}

constexpr std::string_view kConsoleFile = "file:";
constexpr size_t kMostConfig = kMiB;

Result<std::string> ParseConsole(const std::string& text) {
  if (text == "stdio" || text == "none") return text;
  if (text.starts_with(kConsoleFile) && text.size() > kConsoleFile.size()) return text;
  return Fail("'{}' is not stdio, file:PATH or none", text);
}

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) + 1 - first);
}

// As much of a line of a file as one line of an error has room for.
std::string Quoted(std::string_view text) {
  constexpr size_t kMost = 80;
  return text.size() <= kMost ? fmt::format("'{}'", text) : fmt::format("'{}...'", text.substr(0, kMost));
}

// Not Boost's parser of config files: that one cuts a value at '#', which a kernel command line may hold.
Result<po::parsed_options> ParseConfigText(std::string_view text, const po::options_description& known) {
  po::parsed_options parsed(&known);
  unsigned number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = Trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.empty() || line.starts_with('#')) continue;
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos)
      return Fail("line {}: {} is not NAME = VALUE", number, Quoted(line));
    po::option option;
    option.string_key = Trim(line.substr(0, equals));
    if (option.string_key.empty()) return Fail("line {}: {} has no name", number, Quoted(line));
    option.value = {std::string(Trim(line.substr(equals + 1)))};
    if (option.string_key == "config") return Fail("a config file cannot name another");
    if (option.string_key == "help") return Fail("line {}: help is for the command line", number);
    if (known.find_nothrow(option.string_key, false) == nullptr)
      return Fail("line {}: there is no option {}", number, Quoted(option.string_key));
    parsed.options.push_back(std::move(option));
  }
  return parsed;
}

// What the options were given, and where.
struct Given {
  bool Has(const std::string& name) const { return values.contains(name); }
  std::string Text(const std::string& name) const {
    return Has(name) ? values[name].as<std::string>() : std::string();
  }
  std::vector<std::string> List(const std::string& name) const {
    return Has(name) ? values[name].as<std::vector<std::string>>() : std::vector<std::string>();
  }
  // The name of a file, or nothing where the option was not given: as by "" or an empty variable it is an error.
  Result<std::string> File(const std::string& name) const {
    if (Has(name) && Text(name).empty())
      return Checked(name, Result<std::string>(Fail("the name of the file is empty")));
    return Text(name);
  }
  // The result, or an error that names the option, and the file if that gave it.
  template <typename T>
  Result<T> Checked(const std::string& name, Result<T> result) const {
    if (result) return result;
    Error error = std::move(result).error().Within("--" + name);
    if (in_file.contains(name)) error = std::move(error).Within(Text("config"));
    return std::unexpected(std::move(error));
  }

  po::variables_map values;
  std::set<std::string> in_file;
};

Result<> ReadConfigFile(const std::string& path, const po::options_description& known, Given& given) {
  const Result<std::string> text = sys::ReadFile(path, kMostConfig);
  if (!text)
    return Fail("cannot read config file {}: {}", path, sys::ErrnoText(text.error().code()));
  const po::parsed_options parsed =
      TRY(Within(ParseConfigText(*text, known), [&] { return path; }));
  for (const po::option& option : parsed.options) {
    const std::string& name = option.string_key;
    if (!given.Has(name) || given.values[name].defaulted()) given.in_file.insert(name);
  }
  try {
    po::store(parsed, given.values);
  } catch (const po::error& error) {
    return Fail("{}: {}", path, error.what());
  }
  return {};
}

Result<Given> Parse(const std::vector<std::string>& arguments) {
  const po::options_description options = Describe();
  Given given;
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
    po::store(parsed, given.values);
  } catch (const po::error& error) {
    return Fail("{}", error.what());
  }
  if (given.Has("config")) TRY(ReadConfigFile(given.Text("config"), options, given));
  return given;
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
  const Given given = TRY(Parse(arguments));
  RunOptions options;
  options.help = given.Has("help");
  if (options.help) return options;

  options.config = given.Text("config");
  options.kernel = given.Text("kernel");
  if (options.kernel.empty()) return Fail("--kernel FILE is missing");
  options.initrd = TRY(given.File("initrd"));
  options.command_line = given.Text("cmdline");
  options.console = TRY(given.Checked("console", ParseConsole(given.Text("console"))));
  options.report = TRY(given.File("report"));
  options.prefault = given.values["prefault"].as<bool>();
  for (const std::string& module : given.List("module")) {
    const size_t equals = module.find('=');
    options.modules.push_back(
        {module.substr(0, equals), equals == std::string::npos ? "" : module.substr(equals + 1)});
  }
  for (const std::string& device : given.List("device"))
    options.devices.push_back(TRY(given.Checked("device", ParseDeviceSpec(device))));
  TRY(given.Checked("device", CheckDistinct(options.devices)));
  options.failpoints = given.List("failpoint");
  for (const std::string& rule : options.failpoints)
    TRY(given.Checked("failpoint", failpoints::Check(rule)));
  if (given.Has("hugepages"))
    options.pages = TRY(given.Checked("hugepages", ParsePageSize(given.Text("hugepages"))));
  options.memory_bytes =
      TRY(given.Checked("memory", ParseMemory(given.Text("memory"), options.pages)));
  options.cpus = TRY(given.Checked("cpus", ParseCpus(given.Text("cpus"))));
  options.log_level = TRY(given.Checked("log", log::ParseLevel(given.Text("log"))));
  return options;
}

std::string RunHelp() {
  std::ostringstream text;
  text << kIntro << Describe() << kExamples;
  return text.str();
}

}  // namespace crossbar
