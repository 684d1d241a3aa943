#include "memory/backing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "memory/host_mapping.h"

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kPages = 4;

struct RamBacking : ::testing::Test {
  RamBacking() {
    memfd = sys::MemfdCreate("backing", 0).value();
    EXPECT_TRUE(sys::Ftruncate(memfd.get(), kPages * kPageSize));
    mapping = HostMapping::Map(memfd.get(), 0, kPages * kPageSize, PROT_READ | PROT_WRITE).value();
    ram.host = mapping.address();
  }
  // Every page, as /proc/self/pagemap has it.
  void Touch() {
    for (uint64_t page = 0; page < kPages; ++page) mapping.bytes()[page * kPageSize] = std::byte(1);
  }
  Fd memfd;
  HostMapping mapping;
  Backing ram;
};

uint64_t Total(const std::vector<PhysicalRange>& ranges) {
  uint64_t total = 0;
  for (const PhysicalRange& range : ranges) total += range.size;
  return total;
}

TEST(Backing, AnOffsetMovesEveryHandleThatIsThere) {
  Backing backing;
  backing.host = Hva(0x10000);
  backing.file = {{3, 0x100}};
  backing.dma_buf = {{4, 0}};
  backing.bar_physical = 0xe0000000;
  backing.bar_offset = 0x2000;
  const Backing later = backing.At(0x30);
  EXPECT_EQ(later.host, Hva(0x10030));
  EXPECT_EQ(later.file->fd, 3);
  EXPECT_EQ(later.file->offset, 0x130u);
  EXPECT_EQ(later.dma_buf->offset, 0x30u);
  EXPECT_EQ(later.bar_physical, 0xe0000030u);
  EXPECT_EQ(later.bar_offset, 0x2030u);
  EXPECT_EQ(Backing().At(0x30).host, Hva()) << "nowhere stays nowhere";
  EXPECT_FALSE(Backing().At(0x30).file);
}

TEST(Backing, ABarIsWhereItsResourceSays) {
  Backing bar;
  bar.kind = Backing::Kind::kBar;
  EXPECT_THAT(bar.Physical(0x1000).error().message(), HasSubstr("does not say"));
  bar.bar_physical = 0xe0000000;
  EXPECT_THAT(bar.At(0x800).Physical(0x1000).value(),
              ElementsAre(PhysicalRange{0xe0000800, 0x1000}));
}

TEST(Backing, RamThatIsNotMappedHereHasNoAnswer) {
  EXPECT_THAT(Backing().Physical(0x1000).error().message(), HasSubstr("not mapped"));
}

TEST_F(RamBacking, RamThatWasNeverTouchedHasNoAnswer) {
  EXPECT_THAT(ram.Physical(kPages * kPageSize).error().message(), HasSubstr("never touched"));
}

TEST_F(RamBacking, ABarThatIsMemoryIsWhereItsPagesAre) {
  Touch();
  Backing bar = ram;
  bar.kind = Backing::Kind::kBar;
  const auto physical = bar.Physical(kPages * kPageSize);
  if (!physical) {
    EXPECT_THAT(physical.error().message(), HasSubstr("CAP_SYS_ADMIN"));
    GTEST_SKIP() << physical.error().message();
  }
  EXPECT_EQ(*physical, ram.Physical(kPages * kPageSize).value());
}

TEST_F(RamBacking, TellsRamInWholePhysicalRangesOrWhyNot) {
  Touch();
  const auto physical = ram.Physical(kPages * kPageSize);
  if (!physical) {
    EXPECT_THAT(physical.error().message(), HasSubstr("CAP_SYS_ADMIN"));
    GTEST_SKIP() << physical.error().message();
  }
  EXPECT_EQ(Total(*physical), kPages * kPageSize);
  // Page by page it is the same memory.
  std::vector<uint64_t> pages;
  for (const PhysicalRange& range : *physical)
    for (uint64_t offset = 0; offset < range.size; offset += kPageSize)
      pages.push_back(range.start + offset);
  for (uint64_t page = 0; page < kPages; ++page)
    EXPECT_THAT(ram.At(page * kPageSize).Physical(kPageSize).value(),
                ElementsAre(PhysicalRange{pages[page], kPageSize}));
  // And byte by byte, as a place that Find gave is seldom the start of a page.
  EXPECT_THAT(ram.At(0x123).Physical(0x10).value(),
              ElementsAre(PhysicalRange{pages[0] + 0x123, 0x10}));
  const auto across = ram.At(kPageSize - 8).Physical(kPageSize + 16).value();
  EXPECT_EQ(Total(across), kPageSize + 16);
  EXPECT_EQ(across.front().start, pages[0] + kPageSize - 8);
  EXPECT_EQ(across.back().start + across.back().size, pages[2] + 8);
}

}  // namespace
}  // namespace crossbar
