// Memslots: Map and Zap of one range through AddressSpace, beside the bare ioctl.
//
// By size (a sparse memfd: no page of it is touched) and by how many vCPUs are running, for the
// removal waits for each of them. Both sides work on the same VM, slot number and addresses, in
// turn. Gate: AddressSpace takes at most 1.1 times as long, on the median. Without one where there are fewer
// processors than vCPUs and us: the update then waits until the scheduler has run all of them.
#include <sys/mman.h>

#include <chrono>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/kvm_uapi.h"
#include "base/sys.h"
#include "bench/harness.h"
#include "bench/machine.h"

namespace crossbar::bench {
namespace {

constexpr uint64_t kSizes[] = {2 * kMiB, 64 * kMiB, kGiB, 16 * kGiB};
constexpr unsigned kVcpus[] = {0, 1, 4};
constexpr uint8_t kSpin[] = {0xf3, 0x90, 0xeb, 0xfc};  // 1: pause; jmp 1b
constexpr Gpa kPlace(16 * kGiB);
constexpr uint32_t kFreeSlot =
    1;  // slot 0 holds the code; AddressSpace takes the lowest free one too

// Each returns the seconds to add and to delete.
Result<std::vector<double>> ThroughAddressSpace(Machine& machine, GuestRange range, Hva host) {
  AddressSpace::Placement placement;
  Backing backing;
  backing.kind = Backing::Kind::kBar;
  backing.host = host;
  placement.pieces.push_back({range, backing});
  Result<AddressSpace::Mapping> mapping;
  const double add = Timed([&] { mapping = machine.space().Map(std::move(placement)); });
  if (!mapping) return std::unexpected(mapping.error());
  AddressSpace::Mapping* const zapped = &*mapping;
  const double remove = Timed([&] { machine.space().Zap({&zapped, 1}); });
  return std::vector{add, remove};
}

Result<std::vector<double>> Bare(Machine& machine, GuestRange range, Hva host) {
  kvm_userspace_memory_region region{};
  region.slot = kFreeSlot;
  region.guest_phys_addr = range.start.value();
  region.userspace_addr = host.value();
  std::vector<double> seconds;
  for (const uint64_t size : {range.size, uint64_t{0}}) {
    region.memory_size = size;
    int result = 0;
    seconds.push_back(Timed([&] {
      result = sys::TryIoctl(machine.vm(), SYS_REQUEST(KVM_SET_USER_MEMORY_REGION), &region);
    }));
    if (result < 0) return std::unexpected(sys::ErrnoError(-result, "KVM_SET_USER_MEMORY_REGION"));
  }
  return seconds;
}

// vCPUs that spin until this ends.
class Spinners {
 public:
  Spinners(StopSignal& stop, std::vector<std::unique_ptr<Vcpu>> vcpus)
      : stop_(stop), vcpus_(std::move(vcpus)) {
    for (const auto& vcpu : vcpus_) CHECK(vcpu->Start().has_value());
  }
  ~Spinners() {
    if (vcpus_.empty()) return;
    stop_.Request(StopRequest::Reason::kOutside, ExitStatus::kStopped, "measured");
    for (const auto& vcpu : vcpus_) vcpu->Kick();
    for (const auto& vcpu : vcpus_) vcpu->Join();
  }
  Spinners(const Spinners&) = delete;
  Spinners& operator=(const Spinners&) = delete;

  // Whether all of them still run: the VM was not stopped by what they met.
  bool running() const { return !stop_.requested(); }

 private:
  StopSignal& stop_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
};

Result<> MeasureWith(unsigned vcpus, Hva host, Gates& gates) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(kSpin));
  std::vector<std::unique_ptr<Vcpu>> made;
  for (unsigned id = 0; id < vcpus; ++id) made.push_back(TRY(machine->MakeVcpu(id)));
  const Spinners spinners(machine->stop(), std::move(made));
  const Limit limit{.ratio = 1.1, .on = Limit::On::kMedian};
  const bool each_has_its_own = vcpus < std::thread::hardware_concurrency();
  for (const uint64_t size : kSizes) {
    const GuestRange range{kPlace, size};
    const std::vector<Pairs> pairs =
        TRY(Compare([&] { return ThroughAddressSpace(*machine, range, host); },
                    [&] { return Bare(*machine, range, host); }, limit,
                    {.rounds = 40, .at_most = std::chrono::seconds(10)}));
    if (!spinners.running()) return Fail("a vCPU stopped: {}", machine->stop().Take().detail);
    const char* const operations[] = {"add", "delete"};
    for (size_t i = 0; i < pairs.size(); ++i) {
      const std::string name =
          fmt::format("memslot_{}/mib:{}/vcpus:{}", operations[i], size / kMiB, vcpus);
      Report(name, "ioctl", pairs[i]);
      const std::string ratio = name + ", AddressSpace / ioctl";
      if (each_has_its_own) gates.Ratio(ratio, pairs[i], limit);
      else gates.Show(ratio, pairs[i]);
    }
  }
  return {};
}

Result<> Measure(Gates& gates) {
  const uint64_t largest = kSizes[std::size(kSizes) - 1];
  const Fd file = TRY(sys::MemfdCreate("bench-memory", 0));
  TRY(sys::Ftruncate(file.get(), largest));
  const HostMapping memory =
      TRY(HostMapping::Map(file.get(), 0, largest, PROT_READ | PROT_WRITE, kGiB));
  for (const unsigned vcpus : kVcpus) TRY(MeasureWith(vcpus, memory.address(), gates));
  return {};
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  return crossbar::bench::Main(argc, argv, {.before = crossbar::bench::Measure});
}
