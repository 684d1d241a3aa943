#include "vmm/x86/entry.h"

#include "base/kvm_uapi.h"
#include "base/sys.h"

namespace crossbar {
namespace {

constexpr uint64_t kCr0Pe = 1u << 0;
constexpr uint64_t kCr0Et = 1u << 4;  // hardwired to 1
constexpr uint64_t kCr0Pg = 1u << 31;
constexpr uint64_t kCr4Pae = 1u << 5;
constexpr uint64_t kEferLme = 1u << 8;
constexpr uint64_t kEferLma = 1u << 10;
constexpr uint64_t kRflagsFixed = 1u << 1;

constexpr uint8_t kTypeCode = 0xb;     // execute, read, accessed
constexpr uint8_t kTypeData = 0x3;     // read, write, accessed
constexpr uint8_t kTypeBusyTss = 0xb;  // 32-bit TSS, busy: VM entry requires one (SDM 26.3.1.2)

kvm_segment FlatSegment(uint16_t selector, uint8_t type, bool long_mode) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.l = long_mode && type == kTypeCode;
  segment.db = !segment.l;
  return segment;
}

}  // namespace

Result<> SetEntryState(int vcpu_fd, const EntryState& entry) {
  const bool long_mode = entry.mode == EntryState::Mode::kLong64;
  kvm_sregs sregs{};
  TRY(sys::Ioctl(vcpu_fd, SYS_REQUEST(KVM_GET_SREGS), &sregs));
  // PVH and Multiboot say nothing of selectors beyond "flat"; 0x8/0x10 are what loaders use.
  const uint16_t code = entry.code_selector != 0 ? entry.code_selector : 0x8;
  const uint16_t data = entry.data_selector != 0 ? entry.data_selector : 0x10;
  sregs.cs = FlatSegment(code, kTypeCode, long_mode);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = FlatSegment(data, kTypeData, long_mode);
  sregs.tr = {};
  sregs.tr.limit = 0x67;
  sregs.tr.type = kTypeBusyTss;
  sregs.tr.present = 1;
  sregs.cr0 = kCr0Pe | kCr0Et;
  sregs.cr4 = 0;
  sregs.efer = 0;
  if (long_mode) {
    sregs.cr0 |= kCr0Pg;
    sregs.cr3 = entry.page_table.value();
    sregs.cr4 |= kCr4Pae;
    sregs.efer |= kEferLme | kEferLma;
  }
  if (!entry.gdt.empty()) {
    sregs.gdt.base = entry.gdt.start.value();
    sregs.gdt.limit = static_cast<uint16_t>(entry.gdt.size - 1);
  }
  TRY(sys::Ioctl(vcpu_fd, SYS_REQUEST(KVM_SET_SREGS), &sregs));

  kvm_regs regs{};
  regs.rip = entry.rip.value();
  regs.rax = entry.rax;
  regs.rbx = entry.rbx;
  regs.rsi = entry.rsi;
  regs.rsp = entry.rsp;
  regs.rflags = kRflagsFixed;
  TRY(sys::Ioctl(vcpu_fd, SYS_REQUEST(KVM_SET_REGS), &regs));
  return {};
}

std::string DescribeRegisters(int vcpu_fd) {
  kvm_regs regs{};
  if (!sys::Ioctl(vcpu_fd, SYS_REQUEST(KVM_GET_REGS), &regs)) return "registers unknown";
  // kvm_amd resets a vCPU that shuts down, because its VMCB is then undefined (svm.c, shutdown_interception).
  const bool was_reset = regs.rip == 0xfff0 && regs.rsp == 0;
  return fmt::format("rip {:#x} rsp {:#x} rflags {:#x}{}", uint64_t{regs.rip}, uint64_t{regs.rsp},
                     uint64_t{regs.rflags}, was_reset ? ", as after power-on: KVM has not kept the place" : "");
}

}  // namespace crossbar
