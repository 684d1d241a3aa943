// Vcpu: one virtual CPU and the thread that runs it.
//
// Owned by Vm. Made on the main thread; Start launches the thread, which loops on KVM_RUN and
// answers exits until its StopSignal is raised or Kick and Join end it. Between Join and the next
// Start the registers belong to the main thread (reboot, report).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/fd.h"
#include "base/kvm_uapi.h"
#include "base/result.h"
#include "devices/bus.h"
#include "memory/address_space.h"
#include "vmm/fault_finder.h"
#include "vmm/kvm.h"
#include "vmm/stop.h"

namespace crossbar {

// How often each kind of exit came back to us.
struct ExitCounts {
  std::atomic<uint64_t> pio = 0;
  std::atomic<uint64_t> mmio = 0;
  std::atomic<uint64_t> interrupted = 0;
  std::atomic<uint64_t> other = 0;
};

class Vcpu {
 public:
  // What a vCPU reaches; borrowed, all outlive it.
  struct Surroundings {
    TrapBus& pio;
    TrapBus& mmio;
    AddressSpace& space;
    StopSignal& stop;
  };

  // `id` is the local APIC id.
  static Result<std::unique_ptr<Vcpu>> Create(const Kvm& kvm, int vm_fd, uint32_t id,
                                              Surroundings surroundings);
  ~Vcpu();

  // Installs the handler of the kick, the signal that ends KVM_RUN; call before the first Start.
  static Result<> PrepareSignals();

  // `before_first_run` is called on the vCPU thread right before its first KVM_RUN.
  Result<> Start(std::function<void()> before_first_run = {});
  // Ends the run loop soon. Any thread.
  void Kick();
  // Waits for the thread to end; after Kick.
  void Join();

  // The run loop itself, for callers that bring their own thread (benchmarks).
  void Run();

  int fd() const { return fd_.get(); }
  uint32_t id() const { return id_; }
  const ExitCounts& exits() const { return exits_; }

 private:
  Vcpu(Fd fd, uint32_t id, Surroundings surroundings);

  void SetImmediateExit(uint8_t value);
  // All three: whether the guest runs on.
  bool HandleExit();
  bool HandleRareExit();
  bool HandleRunError(int error);
  void HandlePio();
  void HandleMmio();
  void Crash(std::string facts);
  std::string Where();  // "rip 0x...": for messages

  const Fd fd_;
  const uint32_t id_;
  Surroundings around_;
  kvm_run* run_ = nullptr;
  size_t run_size_ = 0;
  TrapBus::Cursor pio_;
  TrapBus::Cursor mmio_;
  FaultFinder faults_;
  ExitCounts exits_;
  std::thread thread_;
};

}  // namespace crossbar
