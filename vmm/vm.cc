#include "vmm/vm.h"

#include <signal.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <ranges>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/kvm_uapi.h"
#include "base/log.h"
#include "base/sys.h"
#include "boot/acpi.h"
#include "boot/fdt.h"
#include "boot/reset_vector.h"
#include "vmm/host_memory.h"
#include "vmm/passthrough_report.h"
#include "vmm/prefault.h"
#include "vmm/x86/entry.h"
#include "vmm/x86/vm_setup.h"

namespace crossbar {
namespace {

// Those that end the VM, and job control.
constexpr std::array kWatchedSignals = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT,
                                        SIGUSR1};

// Usually ParseRunOptions's limit is the lower one.
Result<> CheckCpus(unsigned wanted, const Kvm& kvm) {
  if (wanted <= kvm.max_vcpus()) return {};
  return Fail("--cpus: {} is more than this host's KVM allows; give at most {}", wanted,
              kvm.max_vcpus());
}

}  // namespace

struct Vm::Parts {
  const RunOptions& options;
  StartupPhases& phases;
  Kvm kvm;
  Fd vm_fd;
  StopSignal stop;
  EventLoop loop;
  GuestCpuid cpuid;
  PlatformInfo platform;
  GuestRam ram;
  KvmMemslotTable memslots;
  Images images;
  std::unique_ptr<Console> console;
};

Vm::Vm(Parts parts)
    : options_(parts.options),
      phases_(parts.phases),
      kvm_(std::move(parts.kvm)),
      vm_fd_(std::move(parts.vm_fd)),
      stop_(std::move(parts.stop)),
      loop_(std::move(parts.loop)),
      cpuid_(std::move(parts.cpuid)),
      platform_(std::move(parts.platform)),
      ram_(std::move(parts.ram)),
      memslots_(std::move(parts.memslots)),
      address_space_(memslots_, {.on_unsafe = [this](const Error& error) {
        stop_.Request(StopRequest::Reason::kUnsafe, ExitStatus::kUnsafe, error.message());
      }}),
      console_(std::move(parts.console)),
      images_(std::move(parts.images)) {}

Vm::~Vm() {
  StopVcpus();
  // All devices leave: no BAR takes the place of another for that moment.
  const AddressSpace::ClaimHold hold(address_space_);
  passthrough_.reset();
  devices_.reset();
}

Result<std::unique_ptr<Vm>> Vm::Create(const RunOptions& options, StartupPhases& phases) {
  TRY(CheckHostHas(options));
  Kvm kvm = TRY(Kvm::Open());
  TRY(CheckCpus(options.cpus, kvm));
  Fd vm_fd = TRY(kvm.CreateVm());
  GuestCpuid cpuid = TRY(
      GuestCpuid::FromKvm(kvm.fd(), kvm.Capability(KVM_CAP_TSC_DEADLINE_TIMER) != 0));
  phases.Mark("kvm");

  // Before RAM, which can take long to touch.
  Images images = TRY(Images::Open(options));
  std::unique_ptr<Console> console = TRY(Console::Create(options));
  // Before the layout: what an IOMMU translates is known only once all groups are attached.
  std::unique_ptr<Passthrough> passthrough;
  X86PlatformRequest request;
  if (!options.devices.empty()) {
    passthrough = TRY(Passthrough::Open(options.devices));
    request.unusable = passthrough->unusable();
    request.last_bus = passthrough->buses();
    request.window64_bytes = std::max(request.window64_bytes, passthrough->window_bytes());
    phases.Mark("open devices");
  }
  request.memory_bytes = options.memory_bytes;
  request.cpus = options.cpus;
  request.physical_address_bits = cpuid.physical_address_bits();
  PlatformInfo platform = TRY(MakeX86Platform(request));
  GuestRam ram = TRY(GuestRam::Create(platform.ram, options.pages));
  if (TakesAllAtStart(options)) TRY(PrefaultWithProgress(ram));
  phases.Mark("ram");

  KvmMemslotTable memslots = TRY(KvmMemslotTable::Create(vm_fd.get()));
  StopSignal stop = TRY(StopSignal::Create());
  EventLoop loop = TRY(EventLoop::Create());
  std::unique_ptr<Vm> vm(new Vm({options, phases, std::move(kvm), std::move(vm_fd),
                                 std::move(stop), std::move(loop), std::move(cpuid),
                                 std::move(platform), std::move(ram), std::move(memslots),
                                 std::move(images), std::move(console)}));
  vm->passthrough_ = std::move(passthrough);
  // Slots before the interrupt controllers: those register devices on KVM's I/O buses, and the next
  // memslot update would wait a grace period of several milliseconds for that (kvm_main.c,
  // kvm_io_bus_register_dev since 6.18).
  TRY(vm->MapRam());
  phases.Mark("slots");
  TRY(PrepareX86Vm(vm->vm_fd_.get()));
  phases.Mark("irqchip");
  TRY(vm->MakeDevices());
  phases.Mark("devices");
  if (vm->passthrough_ != nullptr) {
    TRY(vm->ConnectPassthrough());
    phases.Mark("passthrough");
  }
  TRY(vm->MakeVcpus());
  phases.Mark("vcpus");
  TRY(vm->LoadAndEnter(/*fresh=*/true));
  phases.Mark("load");
  return vm;
}

Result<Vm::Images> Vm::Images::Open(const RunOptions& options) {
  Images images;
  images.kernel = TRY(Within(FdImage::Open(options.kernel), [] { return "--kernel"; }));
  if (!options.initrd.empty())
    images.initrd = TRY(Within(FdImage::Open(options.initrd), [] { return "--initrd"; }));
  for (const RunOptions::Module& module : options.modules) {
    auto file = Within(FdImage::Open(module.path), [] { return "--module"; });
    if (!file && !module.arguments.empty()) {
      return std::unexpected(std::move(file).error().WithHint(
          "what follows the first '=' is the module's command line"));
    }
    images.modules.push_back(TRY(std::move(file)));
  }
  TRY(CheckKernel(images.Request(options)));
  return images;
}

LoadRequest Vm::Images::Request(const RunOptions& options) const {
  LoadRequest request;
  request.kernel = kernel.get();
  request.initrd = initrd.get();
  request.command_line = options.command_line;
  for (size_t i = 0; i < modules.size(); ++i)
    request.modules.push_back({modules[i].get(), options.modules[i].arguments});
  return request;
}

Result<> Vm::MapRam() {
  AddressSpace::Placement ram;
  for (const GuestRam::Bank& bank : ram_.banks()) {
    Backing backing;
    backing.host = bank.mapping.address();
    backing.file = {bank.memfd.get(), 0};
    ram.pieces.push_back({bank.range, backing});
  }
  ram_mapping_ =
      TRY(Within(address_space_.Map(std::move(ram)), [] { return "cannot map guest RAM"; }));
  return {};
}

Result<> Vm::MakeDevices() {
  devices_ = std::make_unique<X86Devices>(vm_fd_.get(), platform_, stop_, *console_,
                                          [this] { console_->OnSpace(); });
  return devices_->AttachTo(pio_, mmio_, platform_);
}

Result<> Vm::ConnectPassthrough() {
  const Passthrough::Machine machine{
      vm_fd_.get(), static_cast<uint32_t>(kvm_.Capability(KVM_CAP_IRQ_ROUTING)),
      platform_,    address_space_,
      devices_->pci(), mmio_,
      pio_};
  return passthrough_->Connect(machine);
}

Result<> Vm::MakeVcpus() {
  TRY(Vcpu::PrepareSignals());
  for (const uint32_t id : platform_.cpu_ids) {
    const Vcpu::Surroundings surroundings{pio_, mmio_, address_space_, stop_};
    vcpus_.push_back(TRY(Within(Vcpu::Create(kvm_, vm_fd_.get(), id, surroundings),
                                [&] { return fmt::format("cannot make vCPU {}", id); })));
    TRY(PrepareX86Vcpu(vcpus_.back()->fd(), cpuid_.ForCpu(id, options_.cpus)));
  }
  return {};
}

Result<> Vm::LoadAndEnter(bool fresh) {
  if (passthrough_ != nullptr) TRY(passthrough_->AssignResources());
  LoadRequest request = images_.Request(options_);
  request.ram_is_zero = fresh;
  request.rsdp = TRY(WriteAcpiTables(ram_, platform_));
  TRY(WriteResetVector(ram_, platform_.power));
  const std::vector<std::byte> tree = TRY(BuildDeviceTree(platform_, options_.command_line));
  request.device_tree = tree;
  loaded_ = TRY(LoadGuest(ram_, platform_, request));
  return SetEntryState(vcpus_.front()->fd(), loaded_.entry);
}

Result<> Vm::WatchSignals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : kWatchedSignals) {
    // Blocked, it would be taken also where whoever started us had it ignored (nohup).
    if (TRY(sys::GetSignalHandler(signal)) != SIG_IGN) ::sigaddset(&set, signal);
  }
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signals_ = TRY(sys::SignalFd(set));
  return loop_.Add(signals_.get(), [this] { return HandleSignal(); });
}

Result<> Vm::HandleSignal() {
  signalfd_siginfo info{};
  const Result<size_t> taken = Within(
      sys::Read(signals_.get(), std::as_writable_bytes(std::span(&info, 1))),
      [] { return "cannot take signals"; });
  // A stop that was pending is gone once SIGCONT comes.
  if (!taken && taken.error().code() == EAGAIN) return {};
  TRY(taken);
  if (info.ssi_signo == SIGCONT) return console_->Resume();
  if (info.ssi_signo == SIGUSR1) {
    PrintPassthrough();
    return {};
  }
  if (info.ssi_signo == SIGTSTP) {
    console_->Suspend();
    ::raise(SIGSTOP);  // SIGCONT follows
    return {};
  }
  stop_.Request(StopRequest::Reason::kOutside, ExitStatus::kStopped,
                fmt::format("stopped by {}", ::strsignal(static_cast<int>(info.ssi_signo))));
  return {};
}

// For whoever asks a running VM by SIGUSR1.
void Vm::PrintPassthrough() {
  const std::string text = passthrough_ == nullptr
                               ? "crossbar: no device is passed through\n"
                               : PassthroughText(*passthrough_, address_space_.Peers());
  log::WriteStderr(text);
}

Result<StopRequest> Vm::Run() {
  CHECK(!std::exchange(ran_, true), "a VM runs once");
  TRY(WatchSignals());
  TRY(console_->Attach(loop_, devices_->serial(), [this] {
    stop_.Request(StopRequest::Reason::kOutside, ExitStatus::kStopped, "stopped by Ctrl-A x");
  }));
  TRY(loop_.Add(stop_.event().get(), [this]() -> Result<> {
    loop_.Quit();
    return {};
  }));
  while (true) {
    TRY(StartVcpus());
    // A vCPU that waits for room in the console's pipe looks for a request, and for nothing else.
    if (const Result<> served = loop_.Run(); !served)
      stop_.Request(StopRequest::Reason::kHostError, ExitStatus::kHostError, served.error().message());
    CutPeersIfUnsafe();
    StopVcpus();
    CutPeersIfUnsafe();  // a zap may have failed, or a vCPU have switched it on again, meanwhile
    StopRequest request = stop_.Take();
    if (request.reason != StopRequest::Reason::kReboot) return request;
    static RateLimit limit;
    LogGuestAt(LogLevel::kInfo, limit, "reboot {}: {}", reboots_ + 1, request.detail);
    const Result<> rebooted = Within(Reboot(), [] { return "cannot reboot the guest"; });
    CutPeersIfUnsafe();
    if (stop_.unsafe()) return stop_.Take();
    TRY(rebooted);
  }
}

// G5: a peer may still reach what is about to be given back. Here rather than where that was found:
// there locks are held that a function's configuration needs.
void Vm::CutPeersIfUnsafe() {
  if (stop_.unsafe()) devices_->pci().StopBusMastering();
}

Result<> Vm::Reboot() {
  {
    const AddressSpace::ClaimHold hold(address_space_);
    devices_->Reset();
  }
  // Not before, as the guest's interrupts may have used up the descriptors.
  if (!power_on_) power_on_ = TRY(PowerOnState::Capture(kvm_, cpuid_, platform_.cpu_ids));
  TRY(power_on_->RestoreInterruptControllers(vm_fd_.get()));
  for (size_t i = 0; i < vcpus_.size(); ++i) TRY(power_on_->RestoreVcpu(i, vcpus_[i]->fd()));
  TRY(LoadAndEnter(/*fresh=*/false));
  ++reboots_;
  return {};
}

Result<> Vm::StartVcpus() {
  // The boot CPU last, as the others wait for it: where a thread is refused the guest has not begun.
  for (const auto& vcpu : std::views::reverse(vcpus_)) {
    const bool first = vcpu == vcpus_.front() && reboots_ == 0;
    if (first) TRY(console_->BeginOutput(stop_));
    TRY(vcpu->Start(first ? [this] { phases_.Mark("first entry"); } : std::function<void()>()));
  }
  return {};
}

void Vm::StopVcpus() {
  for (const auto& vcpu : vcpus_) vcpu->Kick();
  for (const auto& vcpu : vcpus_) vcpu->Join();
}

}  // namespace crossbar
