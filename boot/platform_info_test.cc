#include "boot/platform_info.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace crossbar {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kTiB = 1024 * kGiB;

X86PlatformRequest Request(uint64_t memory, unsigned bits = 46) {
  return {.memory_bytes = memory, .physical_address_bits = bits};
}

struct Named {
  std::string name;
  GuestRange range;
};

void ExpectApart(const Named& a, const Named& b) {
  EXPECT_FALSE(a.range.Overlaps(b.range))
      << fmt::format("{} {} and {} {}", a.name, a.range, b.name, b.range);
}

bool IsPort(uint32_t first, uint32_t count, uint32_t port) {
  return port >= first && port - first < count;
}

void ExpectSane(const PlatformInfo& platform, const X86PlatformRequest& request) {
  std::vector<Named> chosen = {{"32-bit window", platform.pci.window32},
                               {"64-bit window", platform.pci.window64}};
  for (const GuestRange& bank : platform.ram) chosen.push_back({"RAM", bank});
  for (const Named& range : chosen) {
    EXPECT_FALSE(range.range.empty()) << range.name;
    ExpectApart(range, {"HyperTransport", kX86HyperTransport});
    for (const GuestRange& unusable : request.unusable) ExpectApart(range, {"unusable", unusable});
  }

  std::vector<Named> all = chosen;
  all.insert(all.end(), {{"ECAM", platform.pci.ecam},
                         {"local APIC", {platform.local_apic, 0x1000}},
                         {"IOAPIC", {platform.ioapic, 0x1000}},
                         {"identity map", kX86IdentityMap},
                         {"task state", kX86TaskState}});
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = i + 1; j < all.size(); ++j) ExpectApart(all[i], all[j]);
  }

  uint64_t total = 0;
  Gpa next(0);
  const Gpa end(uint64_t{1} << platform.physical_address_bits);
  for (const GuestRange& bank : platform.ram) {
    EXPECT_GE(bank.start, next);
    EXPECT_FALSE(bank.Overlaps(kX86PciHole));
    next = bank.end();
    total += bank.size;
  }
  EXPECT_EQ(platform.ram.front().start, Gpa(0));
  EXPECT_EQ(total, request.memory_bytes);
  EXPECT_LE(next, end);

  const PlatformInfo::Pci& pci = platform.pci;
  EXPECT_EQ(pci.ecam.size, (pci.last_bus - pci.first_bus + 1u) * kMiB);
  EXPECT_GE(pci.window32.size, 16 * kMiB);
  EXPECT_TRUE(kX86PciHole.Contains(pci.window32));
  EXPECT_GE(pci.window64.start, std::max(next, Gpa(k4GiB)));
  EXPECT_LE(pci.window64.end(), end);
  EXPECT_GE(pci.window64.size, 4 * kGiB);
  EXPECT_TRUE(IsAligned(pci.window64.start.value() | pci.window64.size, kGiB));
}

std::string ErrorOf(const X86PlatformRequest& request) {
  const auto platform = MakeX86Platform(request);
  return platform ? "no error" : platform.error().ToString();
}

const uint64_t kSizes[] = {
    2 * kMiB,    2 * kMiB + 4096,    128 * kMiB, 3 * kGiB - 4096,     3 * kGiB,   3 * kGiB + 4096,
    4 * kGiB,    16 * kGiB - 4096,   59 * kGiB,  60 * kGiB,           507 * kGiB, 1000 * kGiB,
    1011 * kGiB, 1011 * kGiB + 4096, kTiB,       2 * kTiB + 2 * kMiB, 4 * kTiB};

TEST(X86Platform, HasTheBusesAskedFor) {
  for (const unsigned last_bus : {0u, 7u, 255u}) {
    const auto platform = MakeX86Platform({.memory_bytes = kGiB,
                                           .physical_address_bits = 40,
                                           .last_bus = static_cast<uint8_t>(last_bus)});
    ASSERT_TRUE(platform) << platform.error().ToString();
    EXPECT_EQ(platform->pci.last_bus, last_bus);
    EXPECT_EQ(platform->pci.ecam, (GuestRange{Gpa(0xe0000000), (last_bus + 1) * kMiB}));
  }
}

TEST(X86Platform, KeepsEverythingApartForAllSizesAndAddressWidths) {
  unsigned made = 0;
  for (const uint64_t size : kSizes) {
    for (unsigned bits = 32; bits <= 52; ++bits) {
      SCOPED_TRACE(fmt::format("{:#x} bytes, {} bits", size, bits));
      const X86PlatformRequest request = Request(size, bits);
      const auto platform = MakeX86Platform(request);
      if (!platform) {
        // Only for lack of room: RAM, the PCI hole and the least window are more than there is.
        EXPECT_GT(size + 5 * kGiB + kX86HyperTransport.size, uint64_t{1} << bits);
        continue;
      }
      ++made;
      EXPECT_EQ(platform->physical_address_bits, bits);
      ExpectSane(*platform, request);
    }
  }
  EXPECT_GT(made, 200u);
}

TEST(X86Platform, KeepsEverythingApartForRandomSizesAndHostReservations) {
  std::mt19937_64 random(1);
  unsigned made = 0;
  for (int i = 0; i < 3000; ++i) {
    const unsigned bits = 36 + static_cast<unsigned>(random() % 17);
    X86PlatformRequest request =
        Request(2 * kMiB + random() % (uint64_t{1} << (22 + random() % 20)), bits);
    request.memory_bytes = AlignDown(request.memory_bytes, kPageSize);
    request.window64_bytes = random() % kTiB;
    request.unusable.push_back({Gpa(0xfee00000), 0x100000});
    for (uint64_t n = random() % 4; n > 0; --n) {
      const uint64_t start = 16 * kMiB + random() % (uint64_t{1} << (26 + random() % 26));
      request.unusable.push_back({Gpa(start), 1 + random() % (uint64_t{1} << (random() % 34))});
    }
    SCOPED_TRACE(fmt::format("round {}: {:#x} bytes, {} bits", i, request.memory_bytes, bits));
    const auto platform = MakeX86Platform(request);
    if (!platform) continue;
    ++made;
    ExpectSane(*platform, request);
  }
  EXPECT_GT(made, 2000u);
}

TEST(X86Platform, PutsRamBelow3GiBAndFrom4GiBAroundHyperTransport) {
  const auto small = MakeX86Platform(Request(3 * kGiB));
  ASSERT_TRUE(small);
  EXPECT_THAT(small->ram, ElementsAre(GuestRange{Gpa(0), 3 * kGiB}));
  const auto split = MakeX86Platform(Request(3 * kGiB + 4096));
  ASSERT_TRUE(split);
  EXPECT_THAT(split->ram, ElementsAre(GuestRange{Gpa(0), 3 * kGiB}, GuestRange{Gpa(k4GiB), 4096}));
  const auto large = MakeX86Platform(Request(1100 * kGiB));
  ASSERT_TRUE(large);
  EXPECT_THAT(large->ram,
              ElementsAre(GuestRange{Gpa(0), 3 * kGiB}, GuestRange{Gpa(k4GiB), 1008 * kGiB},
                          GuestRange{Gpa(kTiB), 89 * kGiB}));
}

TEST(X86Platform, SaysTheMostMemoryThatFits) {
  // 512 GiB less the PCI hole and a window of 4 GiB.
  EXPECT_TRUE(MakeX86Platform(Request(507 * kGiB, 39)));
  EXPECT_THAT(ErrorOf(Request(507 * kGiB + 4096, 39)),
              AllOf(HasSubstr("do not fit below 2^39"), HasSubstr("give at most 507 GiB")));
  // At 40 bits the HyperTransport hole is the end.
  EXPECT_TRUE(MakeX86Platform(Request(1007 * kGiB, 40)));
  EXPECT_THAT(ErrorOf(Request(1008 * kGiB, 40)), HasSubstr("give at most 1007 GiB"));
  // Reserved ranges count, rounded to 2 MiB.
  X86PlatformRequest reserved = Request(60 * kGiB, 36);
  reserved.unusable = {{Gpa(0x7fffe000), 0x1000}};
  EXPECT_THAT(ErrorOf(reserved), HasSubstr(fmt::format("give at most {} MiB", 59 * 1024 - 2)));
}

TEST(X86Platform, RefusesWhatCannotBoot) {
  EXPECT_TRUE(MakeX86Platform(Request(2 * kMiB)));
  EXPECT_THAT(ErrorOf(Request(2 * kMiB - 4096)), HasSubstr("give at least 2 MiB"));
  EXPECT_THAT(ErrorOf(Request(0)), HasSubstr("give at least 2 MiB"));
  EXPECT_THAT(ErrorOf(Request(kGiB + 1)), HasSubstr("multiple of 4 KiB"));
  EXPECT_THAT(ErrorOf(Request(kGiB, 32)), HasSubstr("32 physical address bits leave no room"));
  EXPECT_THAT(ErrorOf(Request(kGiB, 0)), HasSubstr("no room"));
}

TEST(X86Platform, ClampsAddressBitsToWhatPageTablesHold) {
  for (const unsigned bits : {52u, 57u, 64u}) {
    const auto platform = MakeX86Platform(Request(kGiB, bits));
    ASSERT_TRUE(platform);
    EXPECT_EQ(platform->physical_address_bits, 52u);
  }
}

TEST(X86Platform, NumbersCpusFromZeroAndLimitsThemTo254) {
  X86PlatformRequest request = Request(kGiB);
  request.cpus = 254;
  const auto platform = MakeX86Platform(request);
  ASSERT_TRUE(platform);
  ASSERT_EQ(platform->cpu_ids.size(), 254u);
  for (uint32_t i = 0; i < 254; ++i) EXPECT_EQ(platform->cpu_ids[i], i);
  request.cpus = 255;
  EXPECT_THAT(ErrorOf(request), HasSubstr("give at most 254"));
  request.cpus = 0;
  EXPECT_THAT(ErrorOf(request), HasSubstr("at least 1"));
}

TEST(X86Platform, PicksTheLowestWindowThatIsLargeEnough) {
  X86PlatformRequest request = Request(kGiB, 48);
  EXPECT_EQ(MakeX86Platform(request).value().pci.window64, (GuestRange{Gpa(k4GiB), 1008 * kGiB}));
  request.window64_bytes = 2 * kTiB;
  EXPECT_EQ(MakeX86Platform(request).value().pci.window64, (GuestRange{Gpa(kTiB), 255 * kTiB}));
  // More than there is: the largest.
  request.window64_bytes = ~0ull;
  EXPECT_EQ(MakeX86Platform(request).value().pci.window64, (GuestRange{Gpa(kTiB), 255 * kTiB}));
  // RAM up to just below the hole leaves too little in front of it.
  request = Request(900 * kGiB, 48);
  EXPECT_EQ(MakeX86Platform(request).value().pci.window64, (GuestRange{Gpa(kTiB), 255 * kTiB}));
}

TEST(X86Platform, StaysOutOfWhatTheHostCannotTranslate) {
  // A 39-bit IOMMU under a 46-bit CPU.
  X86PlatformRequest request = Request(8 * kGiB, 46);
  request.unusable = {{Gpa(uint64_t{1} << 39), ~0ull - (uint64_t{1} << 39) + 1}};
  auto platform = MakeX86Platform(request);
  ASSERT_TRUE(platform);
  EXPECT_EQ(platform->pci.window64, (GuestRange{Gpa(9 * kGiB), 503 * kGiB}));

  // Half of the 32-bit window.
  request = Request(kGiB);
  request.unusable = {{Gpa(0xc0000000), 0x10000000}};
  platform = MakeX86Platform(request);
  ASSERT_TRUE(platform);
  EXPECT_EQ(platform->pci.window32, (GuestRange{Gpa(0xd0000000), 0x10000000}));
  // What is left above ECAM is more.
  request.unusable = {{Gpa(0xc0000000), 0x18000000}};
  platform = MakeX86Platform(request);
  ASSERT_TRUE(platform);
  EXPECT_EQ(platform->pci.window32, (GuestRange{Gpa(0xf0000000), 0xec00000}));
  request.unusable.push_back({Gpa(0xf0000000), 0xf000000});
  platform = MakeX86Platform(request);
  ASSERT_TRUE(platform);
  EXPECT_EQ(platform->pci.window32, (GuestRange{Gpa(0xd8000000), 0x8000000}));
  request.unusable.push_back({Gpa(0xd8000000), 0x7800000});
  EXPECT_THAT(ErrorOf(request), HasSubstr("32-bit PCI window"));

  request.unusable = {{Gpa(0x100000), 0x1000}};
  EXPECT_THAT(ErrorOf(request), HasSubstr("where a kernel starts"));
}

TEST(X86Platform, KeepsItsPortsOutOfThePciWindowAndApart) {
  const auto platform = MakeX86Platform(Request(kGiB));
  ASSERT_TRUE(platform);
  std::vector<uint32_t> ports = {platform->power.sleep_control_port,
                                 platform->power.sleep_status_port, platform->power.reset_port,
                                 platform->boot_marker_port};
  for (uint32_t i = 0; i < 8; ++i) ports.push_back(platform->serial.port + i);
  for (uint32_t i = 0; i < 4; ++i) ports.push_back(platform->debug_exit_port + i);
  for (const uint32_t port : ports) {
    EXPECT_FALSE(IsPort(platform->pci.io_base, platform->pci.io_size, port)) << port;
  }
  EXPECT_LE(platform->pci.io_base + platform->pci.io_size, 0x10000u);
  std::ranges::sort(ports);
  EXPECT_EQ(std::ranges::adjacent_find(ports), ports.end());
}

}  // namespace
}  // namespace crossbar
