#include "vmm/x86/cpuid.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/sys.h"

namespace crossbar {
namespace {

constexpr uint32_t kMaxEntries = 256;  // KVM_MAX_CPUID_ENTRIES: more is EINVAL

constexpr uint32_t kLeaf1EdxHtt = 1u << 28;
constexpr uint32_t kLeaf1EcxTscDeadline = 1u << 24;
constexpr uint32_t kLeaf1EcxHypervisor = 1u << 31;

// kvm_cpuid2 ends in a flexible array: this is one with room.
struct CpuidBuffer {
  explicit CpuidBuffer(uint32_t count)
      : bytes(sizeof(kvm_cpuid2) + count * sizeof(kvm_cpuid_entry2)) {
    header()->nent = count;
  }
  kvm_cpuid2* header() { return reinterpret_cast<kvm_cpuid2*>(bytes.data()); }
  std::vector<std::byte> bytes;
};

constexpr uint32_t ReplaceBits(uint32_t value, unsigned low, unsigned count, uint32_t field) {
  const uint32_t mask = (count == 32 ? ~0u : (1u << count) - 1) << low;
  return (value & ~mask) | ((field << low) & mask);
}

// Leaf 0xb and 0x1f, as far as KVM lists them: level 0 is SMT (one thread a core), level 1 the cores of
// the package. KVM's own entries describe the host or nothing. For a level that is not listed KVM
// answers as hardware does, with no CPUs and the APIC id of level 1.
void SetTopology(std::vector<kvm_cpuid_entry2>& entries, uint32_t apic_id, unsigned cpus,
                 unsigned id_bits) {
  for (const uint32_t leaf : {0xbu, 0x1fu}) {
    if (std::erase_if(entries, [&](const auto& entry) { return entry.function == leaf; }) == 0)
      continue;
    kvm_cpuid_entry2 level{};
    level.function = leaf;
    level.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    level.ebx = 1;
    level.ecx = 0x100;  // level 0, type SMT
    level.edx = apic_id;
    entries.push_back(level);
    level.index = 1;
    level.eax = id_bits;
    level.ebx = cpus;
    level.ecx = 0x201;  // level 1, type core
    entries.push_back(level);
  }
}

}  // namespace

Result<GuestCpuid> GuestCpuid::FromKvm(int kvm_fd, bool tsc_deadline) {
  CpuidBuffer buffer(kMaxEntries);
  TRY(sys::Ioctl(kvm_fd, SYS_REQUEST(KVM_GET_SUPPORTED_CPUID), buffer.header()));
  const kvm_cpuid_entry2* first = buffer.header()->entries;
  return GuestCpuid({first, first + buffer.header()->nent}, tsc_deadline);
}

unsigned GuestCpuid::physical_address_bits() const {
  for (const kvm_cpuid_entry2& entry : supported_) {
    if (entry.function == 0x80000008) return entry.eax & 0xff;
  }
  return 36;  // what a CPU without the leaf has, if it has PAE (SDM vol. 3A, 4.1.4)
}

std::vector<kvm_cpuid_entry2> GuestCpuid::ForCpu(uint32_t apic_id, unsigned cpus) const {
  const auto id_bits = static_cast<unsigned>(std::bit_width(cpus - 1));
  std::vector<kvm_cpuid_entry2> entries = supported_;
  for (kvm_cpuid_entry2& entry : entries) {
    switch (entry.function) {
      case 1:
        entry.ebx = ReplaceBits(entry.ebx, 24, 8, apic_id);
        entry.ebx = ReplaceBits(entry.ebx, 16, 8, std::min(1u << id_bits, 255u));
        entry.edx = cpus > 1 ? entry.edx | kLeaf1EdxHtt : entry.edx & ~kLeaf1EdxHtt;
        entry.ecx |= kLeaf1EcxHypervisor;
        if (tsc_deadline_) entry.ecx |= kLeaf1EcxTscDeadline;
        break;
      case 4:  // Intel's cache leaf: cores of the package; caches below level 3 are a core's own
        entry.eax = ReplaceBits(entry.eax, 26, 6, std::min((1u << id_bits) - 1, 63u));
        if (((entry.eax >> 5) & 7) < 3) entry.eax = ReplaceBits(entry.eax, 14, 12, 0);
        break;
      case 0x80000008:  // AMD: number of cores less one, and the bits of an APIC id that number them
        entry.ecx = ReplaceBits(entry.ecx, 0, 8, std::min(cpus - 1, 255u));
        entry.ecx = ReplaceBits(entry.ecx, 12, 4, id_bits);
        break;
      case 0x8000001e:  // AMD: extended APIC id, core id with one thread each, one node
        entry.eax = apic_id;
        entry.ebx = apic_id & 0xff;
        entry.ecx = 0;
        break;
      default:
        break;
    }
  }
  SetTopology(entries, apic_id, cpus, id_bits);
  return entries;
}

Result<> SetCpuid(int vcpu_fd, std::span<const kvm_cpuid_entry2> entries) {
  CpuidBuffer buffer(static_cast<uint32_t>(entries.size()));
  std::memcpy(buffer.header()->entries, entries.data(), entries.size_bytes());
  TRY(sys::Ioctl(vcpu_fd, SYS_REQUEST(KVM_SET_CPUID2), buffer.header()));
  return {};
}

}  // namespace crossbar
