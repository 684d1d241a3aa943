#include "bench/machine.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/check.h"
#include "base/sys.h"
#include "vmm/x86/entry.h"
#include "vmm/x86/vm_setup.h"

namespace crossbar::bench {
namespace {

constexpr GuestRange kCode{Gpa(0x10000), kPageSize};
constexpr unsigned kCpus = 8;  // that the CPUID topology has room for

}  // namespace

struct Machine::Parts {
  Kvm kvm;
  Fd vm;
  GuestCpuid cpuid;
  StopSignal stop;
  Fd code_file;
  HostMapping code;
  KvmMemslotTable slots;
};

Machine::Machine(Parts parts)
    : kvm_(std::move(parts.kvm)),
      vm_(std::move(parts.vm)),
      cpuid_(std::move(parts.cpuid)),
      stop_(std::move(parts.stop)),
      code_file_(std::move(parts.code_file)),
      code_(std::move(parts.code)),
      slots_(std::move(parts.slots)),
      space_(slots_) {}

Result<std::unique_ptr<Machine>> Machine::Create(std::span<const uint8_t> code) {
  CHECK(code.size() <= kPageSize);
  Kvm kvm = TRY(Kvm::Open());
  Fd vm = TRY(kvm.CreateVm());
  GuestCpuid cpuid = TRY(GuestCpuid::FromKvm(kvm.fd(), /*tsc_deadline=*/false));
  Fd file = TRY(sys::MemfdCreate("bench-code", 0));
  TRY(sys::Ftruncate(file.get(), kPageSize));
  HostMapping mapping = TRY(HostMapping::Map(file.get(), 0, kPageSize, PROT_READ | PROT_WRITE));
  std::ranges::copy(std::as_bytes(code), mapping.bytes().begin());
  KvmMemslotTable slots = TRY(KvmMemslotTable::Create(vm.get()));
  std::unique_ptr<Machine> machine(
      new Machine({std::move(kvm), std::move(vm), std::move(cpuid), TRY(StopSignal::Create()),
                   std::move(file), std::move(mapping), std::move(slots)}));
  Backing backing;
  backing.host = machine->code_.address();
  machine->code_mapping_ = TRY(machine->space_.Map({{{kCode, backing}}, {}}));
  TRY(PrepareX86Vm(machine->vm()));
  TRY(Vcpu::PrepareSignals());
  return machine;
}

Result<> Machine::SetUp(int vcpu, uint32_t id) {
  TRY(PrepareX86Vcpu(vcpu, cpuid_.ForCpu(id, kCpus)));
  // All of them run at once, without the INIT and SIPI that a guest would send.
  const kvm_mp_state runnable{KVM_MP_STATE_RUNNABLE};
  TRY(sys::Ioctl(vcpu, SYS_REQUEST(KVM_SET_MP_STATE), &runnable));
  EntryState entry;
  entry.rip = kCode.start;
  return SetEntryState(vcpu, entry);
}

Result<std::unique_ptr<Vcpu>> Machine::MakeVcpu(uint32_t id) {
  std::unique_ptr<Vcpu> vcpu = TRY(Vcpu::Create(kvm_, vm_.get(), id, {pio_, mmio_, space_, stop_}));
  TRY(SetUp(vcpu->fd(), id));
  return vcpu;
}

Result<Fd> Machine::MakeBareVcpu(uint32_t id) {
  Fd vcpu(TRY(sys::Ioctl(vm_.get(), SYS_REQUEST(KVM_CREATE_VCPU), id)));
  TRY(SetUp(vcpu.get(), id));
  return vcpu;
}

}  // namespace crossbar::bench
