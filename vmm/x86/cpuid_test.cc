#include "vmm/x86/cpuid.h"

#include <gtest/gtest.h>

#include <vector>

namespace crossbar {
namespace {

// What KVM says on some host with 16 threads of 8 cores.
std::vector<kvm_cpuid_entry2> Host() {
  std::vector<kvm_cpuid_entry2> entries;
  const auto add = [&](uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) {
    kvm_cpuid_entry2 entry{};
    entry.function = function;
    entry.index = index;
    entry.eax = eax;
    entry.ebx = ebx;
    entry.ecx = ecx;
    entry.edx = edx;
    entries.push_back(entry);
  };
  add(0x0, 0, 0x1f, 1, 2, 3);
  add(0x1, 0, 0x800f12, 0x05100800, 0x00000001, 0x178bfbff);
  add(0x4, 0, 0x1c004121, 0, 0, 0);  // level 1, two threads share it
  add(0x4, 3, 0x1c03c163, 0, 0, 0);  // level 3, sixteen do
  for (uint32_t level = 0; level < 3; ++level) add(0xb, level, 4, 16, level | 0x300, 5);
  add(0x1f, 0, 4, 16, 0x100, 5);
  add(0x80000008, 0, 0x3028, 0, 0x4007, 0);
  add(0x8000001e, 0, 9, 0x105, 0x100, 0);
  return entries;
}

const kvm_cpuid_entry2& Find(const std::vector<kvm_cpuid_entry2>& entries, uint32_t function, uint32_t index = 0) {
  for (const kvm_cpuid_entry2& entry : entries) {
    if (entry.function == function && entry.index == index) return entry;
  }
  ADD_FAILURE() << "no leaf " << std::hex << function;
  return entries.front();
}

TEST(GuestCpuid, TakesThePhysicalAddressWidthFromItsLeaf) {
  EXPECT_EQ(GuestCpuid(Host(), true).physical_address_bits(), 40u);
  EXPECT_EQ(GuestCpuid({}, true).physical_address_bits(), 36u) << "without the leaf";
}

TEST(GuestCpuid, GivesEachCpuItsApicId) {
  const GuestCpuid cpuid(Host(), true);
  for (uint32_t id = 0; id < 4; ++id) {
    const auto entries = cpuid.ForCpu(id, 4);
    EXPECT_EQ(Find(entries, 1).ebx >> 24, id);
    for (const uint32_t leaf : {0xbu, 0x1fu}) {
      for (const uint32_t level : {0u, 1u}) EXPECT_EQ(Find(entries, leaf, level).edx, id);
    }
    EXPECT_EQ(Find(entries, 0x8000001e).eax, id);
    EXPECT_EQ(Find(entries, 0x8000001e).ebx, id) << "core id, one thread a core";
  }
}

TEST(GuestCpuid, DescribesOneThreadACoreAndOnePackage) {
  for (const unsigned cpus : {1u, 2u, 3u, 4u, 5u, 16u, 254u}) {
    SCOPED_TRACE(cpus);
    const auto entries = GuestCpuid(Host(), true).ForCpu(0, cpus);
    unsigned bits = 0;
    while ((1u << bits) < cpus) ++bits;
    EXPECT_EQ(Find(entries, 1).edx >> 28 & 1, cpus > 1 ? 1u : 0u) << "HTT";
    EXPECT_EQ(Find(entries, 1).ebx >> 16 & 0xff, std::min(1u << bits, 255u));
    const kvm_cpuid_entry2& smt = Find(entries, 0xb, 0);
    EXPECT_EQ(smt.eax & 31, 0u);
    EXPECT_EQ(smt.ebx, 1u);
    EXPECT_EQ(smt.ecx, 0x100u);
    const kvm_cpuid_entry2& core = Find(entries, 0xb, 1);
    EXPECT_EQ(core.eax & 31, bits);
    EXPECT_EQ(core.ebx, cpus);
    EXPECT_EQ(core.ecx, 0x201u);
    EXPECT_EQ(Find(entries, 0x80000008).ecx & 0xff, cpus - 1);
    EXPECT_EQ(Find(entries, 0x80000008).ecx >> 12 & 15, bits);
    EXPECT_EQ(Find(entries, 0x4, 0).eax >> 14 & 0xfff, 0u) << "nobody shares level 1";
    EXPECT_EQ(Find(entries, 0x4, 3).eax >> 14 & 0xfff, 15u) << "level 3 as on the host";
    EXPECT_EQ(Find(entries, 0x4, 0).eax >> 26, std::min((1u << bits) - 1, 63u));
  }
}

// As KVM has it since Linux 6.2: one subleaf, empty.
TEST(GuestCpuid, DescribesTheTopologyWhereKvmLeavesItOut) {
  std::vector<kvm_cpuid_entry2> host(3);
  host[0].function = 0xb;
  host[0].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  host[1].function = 0x7;
  host[2].function = 0x1f;
  host[2].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  const auto entries = GuestCpuid(host, true).ForCpu(5, 6);
  ASSERT_EQ(entries.size(), 5u);
  for (const uint32_t leaf : {0xbu, 0x1fu}) {
    const kvm_cpuid_entry2& smt = Find(entries, leaf, 0);
    const kvm_cpuid_entry2& core = Find(entries, leaf, 1);
    for (const auto* level : {&smt, &core}) {
      EXPECT_EQ(level->edx, 5u);
      EXPECT_EQ(level->flags, uint32_t{KVM_CPUID_FLAG_SIGNIFCANT_INDEX});
    }
    EXPECT_EQ(smt.ecx, 0x100u);
    EXPECT_EQ(smt.ebx, 1u);
    EXPECT_EQ(core.ecx, 0x201u);
    EXPECT_EQ(core.ebx, 6u);
    EXPECT_EQ(core.eax, 3u);
  }
}

TEST(GuestCpuid, HasNoTopologyLeafThatTheCpuDoesNotHave) {
  const auto entries = GuestCpuid(std::vector<kvm_cpuid_entry2>(1), true).ForCpu(0, 2);
  EXPECT_EQ(entries.size(), 1u);
}

TEST(GuestCpuid, SaysThatThereIsAHypervisorAndOffersTheDeadlineTimerWhereKvmHasIt) {
  constexpr uint32_t kDeadline = 1u << 24;
  constexpr uint32_t kHypervisor = 1u << 31;
  EXPECT_EQ(Find(GuestCpuid(Host(), true).ForCpu(0, 1), 1).ecx, 1u | kDeadline | kHypervisor);
  EXPECT_EQ(Find(GuestCpuid(Host(), false).ForCpu(0, 1), 1).ecx, 1u | kHypervisor);
}

TEST(GuestCpuid, LeavesAllElseAsKvmSaysIt) {
  const auto host = Host();
  const auto entries = GuestCpuid(host, true).ForCpu(3, 4);
  EXPECT_EQ(Find(entries, 0).eax, 0x1fu);
  EXPECT_EQ(Find(entries, 1).eax, Find(host, 1).eax);
  EXPECT_EQ(Find(entries, 1).ebx & 0xffff, Find(host, 1).ebx & 0xffff);
  EXPECT_EQ(Find(entries, 0x80000008).eax, Find(host, 0x80000008).eax);
}

}  // namespace
}  // namespace crossbar
