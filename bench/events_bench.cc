// Events: what goes between a guest and a vfio-user server past us: doorbells and interrupts.
//
// A doorbell rung by ioeventfd beside the same one trapped and sent as a message: the guest's time a ring.
// And a round trip: the server raises an interrupt, the guest's handler rings a doorbell, the server wakes.
// That is done with Crossbar's vCPU, irqfd and ioeventfd, and with the least that KVM needs; beside it, with
// no gate, two threads that do the same over bare eventfds.
//
// Gates: a ring by ioeventfd takes at most half as long as a trapped one; the round trip at most 1.3 times
// that of the bare loop.
#include <linux/vfio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/sys.h"
#include "bench/harness.h"
#include "bench/machine.h"
#include "devices/vfio_user/testing/served.h"
#include "vmm/kvm_interrupt_router.h"

namespace crossbar::bench {
namespace {

using vfio_user::DmaDevice;
using vfio_user::testing::Served;

constexpr uint32_t kRings = 200;
constexpr uint32_t kTrips = 200;
constexpr uint64_t kBar = 0xd0000000;
constexpr uint64_t kBarSize = kMiB;
constexpr uint16_t kEndPort = 0xf4;
constexpr uint8_t kVector = 0x41;

// --- The guests ------------------------------------------------------------------------------------

constexpr uint32_t kPage = 0x10000;  // where Machine puts the code
constexpr uint32_t kGdt = 0x400, kIdt = 0x800, kStack = 0xe00, kPointers = 0xe80;  // in the page
constexpr uint32_t kSpuriousRegister = 0xfee000f0, kEndOfInterrupt = 0xfee000b0;

class Page {
 public:
  Page& Bytes(std::initializer_list<uint8_t> bytes) {
    std::ranges::copy(bytes, bytes_.begin() + static_cast<ptrdiff_t>(at_));
    at_ += bytes.size();
    return *this;
  }
  template <typename T>
  Page& Value(T value) {
    std::memcpy(bytes_.data() + at_, &value, sizeof value);
    at_ += sizeof value;
    return *this;
  }
  Page& At(size_t offset) {
    at_ = offset;
    return *this;
  }
  uint32_t here() const { return static_cast<uint32_t>(kPage + at_); }
  std::span<const uint8_t> bytes() const { return bytes_; }

 private:
  std::array<uint8_t, kPageSize> bytes_{};
  size_t at_ = 0;
};

uint32_t Doorbell() { return static_cast<uint32_t>(kBar + DmaDevice::kChannels + 0x20); }

// Rings kRings times, then the end.
Page Ringer() {
  Page page;
  page.Bytes({0xb9}).Value(kRings);         // mov $kRings, %ecx
  page.Bytes({0xa3}).Value(Doorbell());     // 1: mov %eax, doorbell
  page.Bytes({0x49, 0x75, 0xf8});           // dec %ecx; jnz 1b
  page.Bytes({0xe6, kEndPort, 0xeb, 0xfe});  // out %al, $kEndPort; jmp .
  return page;
}

// Rings once when it is ready, then once for each interrupt; kTrips of them, then the end.
Page Echo() {
  Page page;
  page.Bytes({0x0f, 0x01, 0x15}).Value(kPage + kPointers);            // lgdt
  page.Bytes({0x0f, 0x01, 0x1d}).Value(kPage + kPointers + 8);        // lidt
  page.Bytes({0xbc}).Value(kPage + kStack);                           // mov $stack, %esp
  page.Bytes({0xb9}).Value(kTrips);                                   // mov $kTrips, %ecx
  page.Bytes({0xc7, 0x05}).Value(kSpuriousRegister).Value(0x1ff);     // movl: enables the local APIC
  page.Bytes({0xa3}).Value(Doorbell());                               // mov %eax, doorbell
  page.Bytes({0xfb, 0xf4, 0xeb, 0xfd});                               // sti; 1: hlt; jmp 1b
  const uint32_t handler = page.here();
  page.Bytes({0xa3}).Value(Doorbell());                               // mov %eax, doorbell
  page.Bytes({0xc7, 0x05}).Value(kEndOfInterrupt).Value(0);           // movl $0, EOI
  page.Bytes({0x49, 0x75, 0x02, 0xe6, kEndPort});                     // dec %ecx; jnz 1f; out
  // An iret by hand, which KVM's emulator has not in protected mode, and PVM runs all of this on it.
  page.Bytes({0x58, 0x83, 0xc4, 0x04, 0x9d, 0xff, 0xe0});             // 1: pop %eax; add $4, %esp; popf; jmp *%eax
  page.At(kGdt + 8).Value(0x00cf9b000000ffff).Value(0x00cf93000000ffff);  // flat code and data
  const uint64_t gate = 0x8e0000080000;  // a 32-bit interrupt gate, present
  page.At(kIdt + 8 * kVector).Value(gate | (handler & 0xffff) | uint64_t{handler >> 16} << 48);
  page.At(kPointers).Value<uint16_t>(3 * 8 - 1).Value(kPage + kGdt);
  page.At(kPointers + 8).Value<uint16_t>(8 * (kVector + 1) - 1).Value(kPage + kIdt);
  return page;
}

// --- What they reach -------------------------------------------------------------------------------

class EndPort final : public BusDevice {
 public:
  explicit EndPort(StopSignal& stop) : stop_(stop) {}
  uint64_t Read(uint64_t, unsigned) override { return 0; }
  void Write(uint64_t, unsigned, uint64_t) override {
    stop_.Request(StopRequest::Reason::kOutside, ExitStatus::kStopped, "measured");
  }

 private:
  StopSignal& stop_;
};

// Registers of a server, each write a message.
class Forwarded final : public BusDevice {
 public:
  explicit Forwarded(VfioBackend& backend) : backend_(backend) {}
  uint64_t Read(uint64_t, unsigned) override { return 0; }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    CHECK(backend_.Write(0, offset, std::as_bytes(std::span(&value, 1)).first(size)));
  }

 private:
  VfioBackend& backend_;
};

std::unique_ptr<DmaDevice> TwoChannels() {
  return DmaDevice::Create({.address_bits = 64, .channels = 2}).value();
}

// The BAR with an ioeventfd, as Bars places it.
Result<AddressSpace::Mapping> MapDoorbell(Machine& machine, int eventfd) {
  Backing registers;
  registers.kind = Backing::Kind::kBar;
  return machine.space().Map({{{{Gpa(kBar), kBarSize}, registers}},
                              {{Gpa(Doorbell()), 4, std::nullopt, eventfd}}});
}

Result<> CheckEnd(Machine& machine) {
  const StopRequest end = machine.stop().Take();
  if (end.reason != StopRequest::Reason::kOutside) return Fail("{}", end.detail);
  return {};
}

// --- Doorbells -------------------------------------------------------------------------------------

// The guest's time for a ring.
Result<double> RingSeconds(Served<DmaDevice>& dma, bool by_ioeventfd) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(Ringer().bytes()));
  TRY(machine->pio().Add(kEndPort, 1, std::make_shared<EndPort>(machine->stop())));
  TRY(machine->mmio().Add(kBar, kBarSize, std::make_shared<Forwarded>(dma.backend())));
  AddressSpace::Mapping bar;
  if (by_ioeventfd) bar = TRY(MapDoorbell(*machine, dma->IoEvents(0).at(0).eventfd));
  const std::unique_ptr<Vcpu> vcpu = TRY(machine->MakeVcpu(0));
  const double seconds = Timed([&] { vcpu->Run(); });
  TRY(CheckEnd(*machine));
  const uint64_t trapped = by_ioeventfd ? 0 : kRings;
  if (vcpu->exits().mmio != trapped) return Fail("{} exits, not {}", vcpu->exits().mmio.load(), trapped);
  return seconds / kRings;
}

Result<> MeasureDoorbell(Gates& gates) {
  Served<DmaDevice> dma(TwoChannels(), "dma");
  const auto ring = [&](bool by_ioeventfd) {
    return [&dma, by_ioeventfd]() -> Result<std::vector<double>> {
      return std::vector{TRY(RingSeconds(dma, by_ioeventfd))};
    };
  };
  const Limit limit{.ratio = 0.5, .on = Limit::On::kMedian};
  const std::vector<Pairs> pairs = TRY(Compare(ring(true), ring(false), limit, {}));
  Report("doorbell", "trapped", pairs[0]);
  gates.Ratio("doorbell, ioeventfd / trapped", pairs[0], limit);
  return {};
}

// --- Round trips -----------------------------------------------------------------------------------

// From `raise` to the doorbell, the device's side of it.
template <typename Raise>
Result<double> TripSeconds(const Fd& doorbell, Raise&& raise) {
  Result<> failed;
  const double seconds = Timed([&] {
    for (uint32_t i = 0; i < kTrips && failed; ++i) {
      raise();
      if (const auto rung = sys::DrainEvent(doorbell); !rung) failed = std::unexpected(rung.error());
    }
  });
  TRY(std::move(failed));
  return seconds / kTrips;
}

// The message that raises the guest's vector, from an eventfd.
struct Routed {
  KvmInterruptRouter router;
  uint32_t gsi = 0;

  // KVM's I/O APIC has 24 pins; it routes more than the few GSIs that are needed here.
  explicit Routed(Machine& machine) : router(machine.vm(), 24, 64) {}
  Result<> Route() {
    gsi = TRY(router.AllocateGsi());
    return router.SetRoutes(std::array{InterruptRouter::Route{gsi, {0xfee00000, kVector}}});
  }
};

// Nobody waits for a guest that has ended.
void LetGo(const Fd& doorbell) {
  for (uint32_t i = 0; i < kTrips; ++i) CHECK(sys::SignalEvent(doorbell));
}

Result<double> CrossbarTrip(Served<DmaDevice>& dma) {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(Echo().bytes()));
  TRY(machine->pio().Add(kEndPort, 1, std::make_shared<EndPort>(machine->stop())));
  const Fd doorbell = TRY(sys::EventFd(0, EFD_SEMAPHORE));
  const Fd interrupt = TRY(sys::EventFd());
  const AddressSpace::Mapping bar = TRY(MapDoorbell(*machine, doorbell.get()));
  Routed routed(*machine);
  TRY(routed.Route());
  TRY(routed.router.Attach(routed.gsi, interrupt.get()));
  TRY(dma->SetInterrupts(VFIO_PCI_MSI_IRQ_INDEX, 0, std::array{interrupt.get()}));
  const std::unique_ptr<Vcpu> vcpu = TRY(machine->MakeVcpu(0));
  std::thread thread([&] {
    vcpu->Run();
    LetGo(doorbell);
  });
  (void)sys::DrainEvent(doorbell);  // it is ready
  const Result<double> seconds =
      TripSeconds(doorbell, [&] { CHECK(dma.device().lines().SendMessage(0)); });
  thread.join();
  TRY(dma->DisableInterrupts(VFIO_PCI_MSI_IRQ_INDEX));
  TRY(routed.router.Detach(routed.gsi, interrupt.get()));
  TRY(CheckEnd(*machine));
  if (vcpu->exits().mmio != 0) return Fail("{} exits", vcpu->exits().mmio.load());
  return seconds;
}

Result<double> BareTrip() {
  const std::unique_ptr<Machine> machine = TRY(Machine::Create(Echo().bytes()));
  const Fd doorbell = TRY(sys::EventFd(0, EFD_SEMAPHORE));
  const Fd interrupt = TRY(sys::EventFd());
  kvm_ioeventfd event{};
  event.addr = Doorbell();
  event.len = 4;
  event.fd = doorbell.get();
  TRY(sys::Ioctl(machine->vm(), SYS_REQUEST(KVM_IOEVENTFD), &event));
  Routed routed(*machine);
  TRY(routed.Route());
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<uint32_t>(interrupt.get());
  irqfd.gsi = routed.gsi;
  TRY(sys::Ioctl(machine->vm(), SYS_REQUEST(KVM_IRQFD), &irqfd));
  const Fd vcpu = TRY(machine->MakeBareVcpu(0));
  std::thread thread([&] {
    while (::ioctl(vcpu.get(), KVM_RUN, 0) < 0 && errno == EINTR) {
    }
    LetGo(doorbell);
  });
  (void)sys::DrainEvent(doorbell);
  const Result<double> seconds = TripSeconds(doorbell, [&] { CHECK(sys::SignalEvent(interrupt)); });
  thread.join();
  return seconds;
}

Result<double> EventfdTrip() {
  const Fd there = TRY(sys::EventFd());
  const Fd back = TRY(sys::EventFd());
  std::thread thread([&] {
    for (uint32_t i = 0; i < kTrips; ++i) {
      CHECK(sys::DrainEvent(there));
      CHECK(sys::SignalEvent(back));
    }
  });
  const Result<double> seconds = TripSeconds(back, [&] { CHECK(sys::SignalEvent(there)); });
  thread.join();
  return seconds;
}

Result<> MeasureTrip(Gates& gates) {
  const OneCpu one;
  Served<DmaDevice> dma(TwoChannels(), "dma");
  const auto sampler = [](auto trip) {
    return [trip]() -> Result<std::vector<double>> { return std::vector{TRY(trip())}; };
  };
  const auto ours = sampler([&] { return CrossbarTrip(dma); });
  const Limit limit{.ratio = 1.3, .on = Limit::On::kMedian};
  const std::vector<Pairs> bare = TRY(Compare(ours, sampler(BareTrip), limit, {}));
  Report("interrupt_and_doorbell", "bare_kvm", bare[0]);
  gates.Ratio("interrupt and doorbell, crossbar / bare KVM", bare[0], limit);
  const std::vector<Pairs> ping =
      TRY(Compare(ours, sampler(EventfdTrip), limit, {.at_most = std::chrono::seconds(1)}));
  Report("interrupt_and_doorbell_again", "eventfds", ping[0]);
  gates.Show("interrupt and doorbell, crossbar / two threads' eventfds", ping[0]);
  return {};
}

Result<> Measure(Gates& gates) {
  TRY(MeasureDoorbell(gates));
  return MeasureTrip(gates);
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  return crossbar::bench::Main(argc, argv, {.before = crossbar::bench::Measure});
}
