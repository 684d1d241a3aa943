// Exits: nanoseconds outside KVM_RUN for one trapped access, in Crossbar's run loop and in two bare
// ones.
//
// All run the same guest, which does nothing but the access, in a VM made the same way, and are
// timed by the same ioctl() (exit_timer.h). The bare loops do what the least VMM has to: look at
// the exit reason, compare the address, and read or write one device register. In the table loop
// the device is an entry of a table and called through a pointer, as where devices are chosen at
// run time; in the fixed loop it is written into the loop.
//
// A sample is the median over kExits exits of a fresh VM in a fresh process: whether the CPU
// predicts an indirect call after KVM_RUN depends on where address randomisation has put the code.
//
// Gates (docs/decisions/005), for port and MMIO reads and writes: at most 1.5 times the table
// loop's time, and at most 2.2 times the fixed loop's, so that nothing can creep in. Shown without
// a gate: two devices in turn, which defeats the cursor's memory of the last one (devices/bus.h).
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/sys.h"
#include "bench/exit_timer.h"
#include "bench/harness.h"
#include "bench/machine.h"

namespace crossbar::bench {
namespace {

constexpr size_t kExits = 1000;
constexpr uint16_t kPorts[] = {0x80, 0x90};
constexpr uint32_t kRegisters[] = {0xd0000000, 0xd0001000};

struct Access {
  const char* name;
  std::vector<uint8_t> code;
  bool gated = true;  // else only shown
};
// An endless loop around one or two accesses.
const Access kAccesses[] = {
    {"pio_write", {0xe6, 0x80, 0xeb, 0xfc}},            // 1: out %al, $0x80; jmp 1b
    {"pio_read", {0xe4, 0x80, 0xeb, 0xfc}},             // 1: in $0x80, %al; jmp 1b
    {"mmio_write", {0xa2, 0, 0, 0, 0xd0, 0xeb, 0xf9}},  // 1: mov %al, 0xd0000000; jmp 1b
    {"mmio_read", {0xa0, 0, 0, 0, 0xd0, 0xeb, 0xf9}},   // 1: mov 0xd0000000, %al; jmp 1b
    {"pio_write_in_turn", {0xe6, 0x80, 0xe6, 0x90, 0xeb, 0xfa}, false},
    {"mmio_write_in_turn", {0xa2, 0, 0, 0, 0xd0, 0xa2, 0, 0x10, 0, 0xd0, 0xeb, 0xf4}, false},
};

// Enough to fill the timer, and the one that ends no gap.
struct Countdown {
  size_t left = kExits + 1;
  bool Ends() { return --left == 0; }
};

// One register, in Crossbar's dress.
class Register final : public BusDevice {
 public:
  Register(StopSignal& stop, Countdown& countdown) : stop_(stop), countdown_(countdown) {}
  uint64_t Read(uint64_t, unsigned) override {
    Accessed();
    return value_;
  }
  void Write(uint64_t, unsigned, uint64_t value) override {
    Accessed();
    value_ = value;
  }

 private:
  void Accessed() {
    if (countdown_.Ends()) [[unlikely]]
      Stop();
  }
  // Apart: inlined, its locals would give every access a stack frame.
  [[gnu::noinline]] void Stop() {
    stop_.Request(StopRequest::Reason::kOutside, ExitStatus::kStopped, "measured");
  }
  StopSignal& stop_;
  Countdown& countdown_;
  uint64_t value_ = 0;
};

// As the PC has them: the devices under test are not alone on their bus.
Result<> AddDevices(Machine& machine, Countdown& countdown) {
  const auto device = [&] { return std::make_shared<Register>(machine.stop(), countdown); };
  for (const uint16_t port : kPorts) TRY(machine.pio().Add(port, 1, device()));
  for (const uint64_t address : kRegisters) TRY(machine.mmio().Add(address, kPageSize, device()));
  for (uint16_t i = 0; i < 8; ++i) {
    TRY(machine.pio().Add(0x3f8 + i * 0x10u, 8, device()));
    TRY(machine.mmio().Add(0xe0000000 + i * kMiB, kMiB, device()));
  }
  return {};
}

// The gaps between the exits, in ticks.
using Gaps = std::vector<uint64_t>;

Result<Gaps> RunCrossbar(const Access& access) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(access.code));
  Countdown countdown;
  TRY(AddDevices(*machine, countdown));
  const std::unique_ptr<Vcpu> vcpu = TRY(machine->MakeVcpu(0));
  Gaps gaps(kExits);
  StartExitTimer(gaps);
  vcpu->Run();
  gaps.resize(StopExitTimer());
  const StopRequest end = machine->stop().Take();
  if (end.reason != StopRequest::Reason::kOutside) return Fail("{}", end.detail);
  return gaps;
}

// The devices of the fixed loop: what each address holds.
struct FixedDevices {
  uint8_t values[std::size(kPorts) + std::size(kRegisters)] = {};

  static void Transfer(uint8_t& value, uint8_t* data, bool write) {
    if (write) {
      value = *data;
    } else {
      *data = value;
    }
  }
  bool Port(uint16_t port, uint8_t* data, bool write) {
    if (port != kPorts[0] && port != kPorts[1]) return false;
    Transfer(values[port == kPorts[1]], data, write);
    return true;
  }
  bool Mmio(uint64_t address, uint8_t* data, bool write) {
    if (address != kRegisters[0] && address != kRegisters[1]) return false;
    Transfer(values[2 + (address == kRegisters[1])], data, write);
    return true;
  }
};

// The same, each found in a table and called through a pointer.
struct DeviceTable {
  struct Entry {
    uint64_t address;
    void (*volatile transfer)(uint8_t& value, uint8_t* data, bool write);  // not to be seen through
    uint8_t value = 0;
  };
  Entry ports[2] = {{kPorts[0], FixedDevices::Transfer}, {kPorts[1], FixedDevices::Transfer}};
  Entry registers[2] = {{kRegisters[0], FixedDevices::Transfer},
                        {kRegisters[1], FixedDevices::Transfer}};

  static bool Find(Entry (&entries)[2], uint64_t address, uint8_t* data, bool write) {
    for (Entry& entry : entries) {
      if (entry.address != address) continue;
      entry.transfer(entry.value, data, write);
      return true;
    }
    return false;
  }
  bool Port(uint16_t port, uint8_t* data, bool write) { return Find(ports, port, data, write); }
  bool Mmio(uint64_t address, uint8_t* data, bool write) {
    return Find(registers, address, data, write);
  }
};

// Until the countdown ends; false where KVM says something else.
template <typename Devices>
bool BareLoop(int vcpu, kvm_run* run) {
  Devices devices;
  Countdown countdown;
  while (true) {
    if (::ioctl(vcpu, KVM_RUN, 0) < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    bool known = false;
    switch (run->exit_reason) {
      case KVM_EXIT_IO:
        known = devices.Port(run->io.port, reinterpret_cast<uint8_t*>(run) + run->io.data_offset,
                             run->io.direction == KVM_EXIT_IO_OUT);
        break;
      case KVM_EXIT_MMIO:
        known = devices.Mmio(run->mmio.phys_addr, run->mmio.data, run->mmio.is_write != 0);
        break;
    }
    if (!known) return false;
    if (countdown.Ends()) return true;
  }
}

template <typename Devices>
Result<Gaps> RunBare(const Access& access) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(access.code));
  const Fd vcpu = TRY(machine->MakeBareVcpu(0));
  const size_t size = machine->kvm().vcpu_mmap_size();
  auto* const run = static_cast<kvm_run*>(
      TRY(sys::Mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0)));
  Gaps gaps(kExits);
  StartExitTimer(gaps);
  const bool done = BareLoop<Devices>(vcpu.get(), run);
  gaps.resize(StopExitTimer());
  const unsigned reason = run->exit_reason;
  TRY(sys::Munmap(run, size));
  if (!done) return Fail("the bare loop ended on exit reason {}", reason);
  return gaps;
}

struct Loop {
  const char* name;
  Result<Gaps> (*run)(const Access& access);
};
const Loop kCrossbar = {"crossbar", RunCrossbar};
const Loop kTable = {"table", RunBare<DeviceTable>};
const Loop kFixed = {"fixed", RunBare<FixedDevices>};

// In the child: "--sample LOOP ACCESS" prints the median gap in ticks. The exit status.
int PrintSample(std::string_view loop_name, std::string_view access_name) {
  for (const Loop& loop : {kCrossbar, kTable, kFixed}) {
    for (const Access& access : kAccesses) {
      if (loop.name != loop_name || access.name != access_name) continue;
      const Result<Gaps> gaps = loop.run(access);
      if (!gaps || gaps->size() != kExits) {
        fmt::print(stderr, "{}\n", gaps ? "not all exits were timed" : gaps.error().ToString());
        return 1;
      }
      fmt::print("{}\n", Median({gaps->begin(), gaps->end()}));
      return 0;
    }
  }
  return 2;
}

// This program again, for one sample.
Sampler SampleOf(const Loop& loop, const Access& access) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command =
      fmt::format("exec '{}' --sample {} {}", program, loop.name, access.name);
  return [command]() -> Result<std::vector<double>> {
    FILE* const pipe = ::popen(command.c_str(), "re");
    if (pipe == nullptr) return std::unexpected(sys::ErrnoError(errno, "popen", command));
    double ticks = 0;
    const bool read = std::fscanf(pipe, "%lf", &ticks) == 1;
    if (::pclose(pipe) != 0 || !read) return Fail("no sample from: {}", command);
    return std::vector{ticks / TicksPerSecond()};
  };
}

Result<> CompareWith(const Loop& reference, const Access& access, Limit limit, Gates& gates) {
  const std::vector<Pairs> pairs =
      TRY(Compare(SampleOf(kCrossbar, access), SampleOf(reference, access), limit,
                  {.rounds = 20, .at_most = std::chrono::seconds(access.gated ? 15 : 1)}));
  const std::string what = fmt::format("exits/{}_vs_{}", access.name, reference.name);
  Report(what, reference.name, pairs.front());
  const std::string name =
      fmt::format("outside KVM_RUN, {}, Crossbar / {} loop", access.name, reference.name);
  if (access.gated) {
    gates.Ratio(name, pairs.front(), limit);
  } else {
    gates.Show(name, pairs.front());
  }
  return {};
}

Result<> Measure(Gates& gates) {
  benchmark::AddCustomContext(
      "timer_floor_ns",
      fmt::format("{:.1f}", static_cast<double>(TimerFloor()) * 1e9 / TicksPerSecond()));
  for (const Access& access : kAccesses) {
    TRY(CompareWith(kTable, access, {.ratio = 1.5}, gates));
    TRY(CompareWith(kFixed, access, {.ratio = 2.2}, gates));
  }
  return {};
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--sample")
    return crossbar::bench::PrintSample(argv[2], argv[3]);
  return crossbar::bench::Main(argc, argv, {.before = crossbar::bench::Measure});
}
