#include "memory/host_mapping.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "base/sys.h"

namespace crossbar {
namespace {

struct HostMappingTest : ::testing::Test {
  HostMappingTest() { EXPECT_TRUE(sys::Ftruncate(memfd.get(), 4 * kMiB)); }
  const Fd memfd = sys::MemfdCreate("mapping", 0).value();
};

TEST_F(HostMappingTest, LiesInAHugePageAsAskedFor) {
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  for (const uint64_t alignment : {2 * kMiB, kGiB}) {
    for (const uint64_t phase : {uint64_t{0}, kPageSize, 3 * kPageSize, alignment - kPageSize}) {
      const auto mapping =
          HostMapping::Map(memfd.get(), kPageSize, 2 * kMiB, kAccess, alignment, phase);
      ASSERT_TRUE(mapping) << mapping.error().ToString();
      EXPECT_EQ(mapping->address().value() % alignment, phase);
      EXPECT_EQ(mapping->size(), 2 * kMiB);
      mapping->bytes().front() = mapping->bytes().back() = std::byte{1};
    }
  }
}

TEST_F(HostMappingTest, APhaseBeyondTheAlignmentIsAMistake) {
  EXPECT_DEATH((void)HostMapping::Map(memfd.get(), 0, kPageSize, PROT_READ, kPageSize, kPageSize),
               "CHECK");
}

}  // namespace
}  // namespace crossbar
