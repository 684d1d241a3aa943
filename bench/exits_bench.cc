// Exits: nanoseconds outside KVM_RUN for one trapped access, in Crossbar's run loop and in a bare
// one.
//
// Both run the same guest, which does nothing but the access, in a VM made the same way, and are
// timed by the same ioctl() (exit_timer.h). The bare loop does what the least VMM has to: look at
// the exit reason, compare the address, read or write one device register. A sample is the median
// over kExits exits of a fresh VM.
//
// Gates: for port and MMIO reads and writes, Crossbar takes at most 1.5 times as long. Shown
// without a gate: two devices in turn, which defeats the cursor's memory of the last one
// (devices/bus.h), and the ratio to a bare loop that has a table of devices and calls the one it
// finds through a pointer.
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
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
  bool gated = true;      // else only shown
  bool by_table = false;  // the reference calls its device through a pointer
};
// An endless loop around one or two accesses.
const Access kAccesses[] = {
    {"pio_write", {0xe6, 0x80, 0xeb, 0xfc}},            // 1: out %al, $0x80; jmp 1b
    {"pio_read", {0xe4, 0x80, 0xeb, 0xfc}},             // 1: in $0x80, %al; jmp 1b
    {"mmio_write", {0xa2, 0, 0, 0, 0xd0, 0xeb, 0xf9}},  // 1: mov %al, 0xd0000000; jmp 1b
    {"mmio_read", {0xa0, 0, 0, 0, 0xd0, 0xeb, 0xf9}},   // 1: mov 0xd0000000, %al; jmp 1b
    {"pio_write_in_turn", {0xe6, 0x80, 0xe6, 0x90, 0xeb, 0xfa}, false},
    {"mmio_write_in_turn", {0xa2, 0, 0, 0, 0xd0, 0xa2, 0, 0x10, 0, 0xd0, 0xeb, 0xf4}, false},
    {"pio_write_by_table", {0xe6, 0x80, 0xeb, 0xfc}, false, true},
    {"mmio_write_by_table", {0xa2, 0, 0, 0, 0xd0, 0xeb, 0xf9}, false, true},
};

// Enough to fill the timer, and the one that ends no gap.
struct Countdown {
  size_t left = kExits + 1;
  bool Ends() { return --left == 0; }
};

// One register, in Crossbar's dress.
class Register : public BusDevice {
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

Result<std::vector<double>> Sample(std::span<const uint64_t> ticks, size_t count) {
  if (count != kExits) return Fail("{} of {} exits were timed", count, kExits);
  std::vector<double> seconds;
  for (const uint64_t gap : ticks) seconds.push_back(static_cast<double>(gap) / TicksPerSecond());
  return std::vector{Median(seconds)};
}

Result<std::vector<double>> RunCrossbar(const Access& access) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(access.code));
  Countdown countdown;
  TRY(AddDevices(*machine, countdown));
  const std::unique_ptr<Vcpu> vcpu = TRY(machine->MakeVcpu(0));
  std::array<uint64_t, kExits> ticks{};
  StartExitTimer(ticks);
  vcpu->Run();
  const size_t count = StopExitTimer();
  const StopRequest end = machine->stop().Take();
  if (end.reason != StopRequest::Reason::kOutside) return Fail("{}", end.detail);
  return Sample(ticks, count);
}

// The devices of the bare loops: what each address holds.
struct BareDevices {
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
struct BareTable {
  struct Entry {
    uint64_t address;
    void (*volatile transfer)(uint8_t& value, uint8_t* data, bool write);  // not to be seen through
    uint8_t value = 0;
  };
  Entry ports[2] = {{kPorts[0], BareDevices::Transfer}, {kPorts[1], BareDevices::Transfer}};
  Entry registers[2] = {{kRegisters[0], BareDevices::Transfer},
                        {kRegisters[1], BareDevices::Transfer}};

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

Result<std::vector<double>> RunBare(const Access& access) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(access.code));
  const Fd vcpu = TRY(machine->MakeBareVcpu(0));
  const size_t size = machine->kvm().vcpu_mmap_size();
  auto* const run = static_cast<kvm_run*>(
      TRY(sys::Mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0)));
  std::array<uint64_t, kExits> ticks{};
  StartExitTimer(ticks);
  const bool done = access.by_table ? BareLoop<BareTable>(vcpu.get(), run)
                                    : BareLoop<BareDevices>(vcpu.get(), run);
  const size_t count = StopExitTimer();
  const unsigned reason = run->exit_reason;
  TRY(sys::Munmap(run, size));
  if (!done) return Fail("the bare loop ended on exit reason {}", reason);
  return Sample(ticks, count);
}

Result<> Measure(Gates& gates) {
  const Limit limit{.ratio = 1.5};
  benchmark::AddCustomContext(
      "timer_floor_ns",
      fmt::format("{:.1f}", static_cast<double>(TimerFloor()) * 1e9 / TicksPerSecond()));
  for (const Access& access : kAccesses) {
    const std::vector<Pairs> pairs =
        TRY(Compare([&] { return RunCrossbar(access); }, [&] { return RunBare(access); }, limit,
                    {.rounds = 20, .at_most = std::chrono::seconds(access.gated ? 15 : 1)}));
    Report(std::string("exits/") + access.name, "bare", pairs.front());
    const std::string name = fmt::format("outside KVM_RUN, {}, Crossbar / bare", access.name);
    if (access.gated) {
      gates.Ratio(name, pairs.front(), limit);
    } else {
      gates.Show(name, pairs.front());
    }
  }
  return {};
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  return crossbar::bench::Main(argc, argv, {.before = crossbar::bench::Measure});
}
