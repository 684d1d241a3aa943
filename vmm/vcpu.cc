#include "vmm/vcpu.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/sys.h"
#include "base/thread.h"
#include "vmm/x86/entry.h"

namespace crossbar {
namespace {

// Its handler does nothing: its delivery is what ends KVM_RUN.
int KickSignal() { return SIGRTMIN; }

// Blocked until here, a kick that came earlier is taken now.
void TakeKicks() {
  sigset_t kick;
  ::sigemptyset(&kick);
  ::sigaddset(&kick, KickSignal());
  ::pthread_sigmask(SIG_UNBLOCK, &kick, nullptr);
}

// Only the thread that owns the counter writes it, so no read-modify-write is needed.
void Count(std::atomic<uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

Vcpu::Vcpu(Fd fd, uint32_t id, Surroundings surroundings)
    : fd_(std::move(fd)), id_(id), around_(surroundings), pio_(around_.pio), mmio_(around_.mmio),
      faults_(around_.space) {}

Result<std::unique_ptr<Vcpu>> Vcpu::Create(const Kvm& kvm, int vm_fd, uint32_t id,
                                           Surroundings surroundings) {
  Fd fd(TRY(sys::Ioctl(vm_fd, SYS_REQUEST(KVM_CREATE_VCPU), id)));
  std::unique_ptr<Vcpu> vcpu(new Vcpu(std::move(fd), id, surroundings));
  void* run = TRY(sys::Mmap(nullptr, kvm.vcpu_mmap_size(), PROT_READ | PROT_WRITE, MAP_SHARED,
                            vcpu->fd(), 0));
  vcpu->run_ = static_cast<kvm_run*>(run);
  vcpu->run_size_ = kvm.vcpu_mmap_size();
  return vcpu;
}

Vcpu::~Vcpu() {
  CHECK(!thread_.joinable(), "vCPU {} still runs", id_);
  // Past the door for system calls: it cannot fail for what was mapped.
  if (run_ != nullptr) CHECK(::munmap(run_, run_size_) == 0);
}

Result<> Vcpu::PrepareSignals() {
  return sys::SetSignalHandler(KickSignal(), [](int) {});
}

Result<> Vcpu::Start(std::function<void()> before_first_run) {
  CHECK(!thread_.joinable());
  SetImmediateExit(0);
  Result<std::thread> thread = StartThread(
      fmt::format("vcpu{}", id_), [this, before = std::move(before_first_run)] {
        TakeKicks();
        if (before) before();
        Run();
      });
  if (!thread) {
    return std::unexpected(
        Error::Of("cannot start the thread of vCPU {}: {}", id_, sys::ErrnoText(thread.error().code()))
            .WithHint("lower --cpus, or raise the limits on threads (ulimit -u) and memory (ulimit -v)"));
  }
  thread_ = *std::move(thread);
  return {};
}

// Shared with KVM and with Kick's callers.
void Vcpu::SetImmediateExit(uint8_t value) {
  __atomic_store_n(&run_->immediate_exit, value, __ATOMIC_SEQ_CST);
}

void Vcpu::Kick() {
  // The flag catches a vCPU that is about to enter, the signal one that is inside.
  SetImmediateExit(1);
  if (thread_.joinable()) ::pthread_kill(thread_.native_handle(), KickSignal());
}

void Vcpu::Join() {
  if (thread_.joinable()) thread_.join();
}

void Vcpu::Run() {
  while (!around_.stop.requested()) {
    const int result = sys::TryIoctl(fd(), SYS_REQUEST(KVM_RUN), 0ul);
    if (!(result < 0 ? HandleRunError(-result) : HandleExit())) break;
  }
  // The exit that ended the loop may be half done (an IN whose value is still to be taken over):
  // one more entry, which returns at once, completes it, so that the registers are whole (KVM API,
  // "KVM_RUN", immediate_exit).
  SetImmediateExit(1);
  (void)sys::TryIoctl(fd(), SYS_REQUEST(KVM_RUN), 0ul);
}

bool Vcpu::HandleRunError(int error) {
  if (error == EINTR || error == EAGAIN) {
    Count(exits_.interrupted);
    return __atomic_load_n(&run_->immediate_exit, __ATOMIC_SEQ_CST) == 0;  // Kick sets it
  }
  // The exit reason means nothing here: it may be the last exit's (Linux 6.1).
  if (error == EFAULT && faults_.OnRunFault()) return true;
  around_.stop.Request(StopRequest::Reason::kHostError, ExitStatus::kHostError,
                       fmt::format("vCPU {}: KVM_RUN: {} ({})", id_, sys::ErrnoText(error),
                                   Where()));
  return false;
}

bool Vcpu::HandleExit() {
  // The frequent ones by compare: a switch jumps through a table (docs/decisions/005).
  if (run_->exit_reason == KVM_EXIT_MMIO) {
    HandleMmio();
    return true;
  }
  if (run_->exit_reason == KVM_EXIT_IO) {
    HandlePio();
    return true;
  }
  return HandleRareExit();
}

bool Vcpu::HandleRareExit() {
  switch (run_->exit_reason) {
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      Count(exits_.interrupted);
      return true;
    case KVM_EXIT_SHUTDOWN:
      Crash("triple fault");
      return false;
    case KVM_EXIT_INTERNAL_ERROR:
      Crash(fmt::format("KVM cannot go on, suberror {} (1: an instruction it cannot emulate)",
                        run_->internal.suberror));
      return false;
    case KVM_EXIT_FAIL_ENTRY:
      around_.stop.Request(
          StopRequest::Reason::kHostError, ExitStatus::kHostError,
          fmt::format("vCPU {}: the CPU refused to enter the guest, reason {:#x} ({})", id_,
                      uint64_t{run_->fail_entry.hardware_entry_failure_reason}, Where()));
      return false;
    default:
      around_.stop.Request(StopRequest::Reason::kHostError, ExitStatus::kHostError,
                           fmt::format("vCPU {}: exit reason {} is not one Crossbar knows ({})",
                                       id_, run_->exit_reason, Where()));
      return false;
  }
}

void Vcpu::HandlePio() {
  Count(exits_.pio);
  const unsigned size = run_->io.size;
  auto* data = reinterpret_cast<uint8_t*>(run_) + run_->io.data_offset;
  // A string instruction moves `count` items through one port.
  for (uint32_t i = 0; i < run_->io.count; ++i, data += size) {
    if (run_->io.direction == KVM_EXIT_IO_OUT) {
      pio_.Write(run_->io.port, data, size);
    } else {
      pio_.Read(run_->io.port, data, size);
    }
  }
}

void Vcpu::HandleMmio() {
  Count(exits_.mmio);
  if (faults_.searching()) [[unlikely]]
    faults_.OnMmio(Gpa(run_->mmio.phys_addr));
  if (run_->mmio.is_write != 0) {
    mmio_.Write(run_->mmio.phys_addr, run_->mmio.data, run_->mmio.len);
  } else {
    mmio_.Read(run_->mmio.phys_addr, run_->mmio.data, run_->mmio.len);
  }
}

void Vcpu::Crash(std::string facts) {
  Count(exits_.other);
  around_.stop.Request(StopRequest::Reason::kGuestCrash, ExitStatus::kGuestCrash,
                       fmt::format("vCPU {}: {} ({})", id_, facts, Where()));
}

std::string Vcpu::Where() { return DescribeRegisters(fd()); }

}  // namespace crossbar
