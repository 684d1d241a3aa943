// Machine: a VM with one page of code and whatever vCPUs a benchmark makes in it. Main thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/fd.h"
#include "base/result.h"
#include "devices/bus.h"
#include "memory/address_space.h"
#include "memory/host_mapping.h"
#include "memory/kvm_memslot_table.h"
#include "vmm/kvm.h"
#include "vmm/stop.h"
#include "vmm/vcpu.h"
#include "vmm/x86/cpuid.h"

namespace crossbar::bench {

class Machine {
 public:
  // `code` is 32-bit code with flat segments; each vCPU starts at its first byte.
  static Result<std::unique_ptr<Machine>> Create(std::span<const uint8_t> code);

  // Crossbar's vCPU. It dies before the machine does.
  Result<std::unique_ptr<Vcpu>> MakeVcpu(uint32_t id);
  // A bare one: its descriptor.
  Result<Fd> MakeBareVcpu(uint32_t id);

  int vm() const { return vm_.get(); }
  const Kvm& kvm() const { return kvm_; }
  AddressSpace& space() { return space_; }
  TrapBus& pio() { return pio_; }
  TrapBus& mmio() { return mmio_; }
  StopSignal& stop() { return stop_; }

 private:
  struct Parts;
  explicit Machine(Parts parts);
  Result<> SetUp(int vcpu, uint32_t id);

  Kvm kvm_;
  Fd vm_;
  GuestCpuid cpuid_;
  StopSignal stop_;
  Fd code_file_;
  HostMapping code_;
  KvmMemslotTable slots_;
  AddressSpace space_;
  AddressSpace::Mapping code_mapping_;
  TrapBus pio_;
  TrapBus mmio_;
};

}  // namespace crossbar::bench
