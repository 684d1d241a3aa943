#include "memory/guarded_copy.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/sys.h"
#include "memory/host_mapping.h"

namespace crossbar {
namespace {

TEST(GuardedCopy, CopiesBothWays) {
  std::array<std::byte, 16> memory{};
  const std::array<std::byte, 4> data{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(GuardedWrite(Hva(&memory[4]), data));
  std::array<std::byte, 4> back{};
  ASSERT_TRUE(GuardedRead(Hva(&memory[4]), back));
  EXPECT_EQ(back, data);
}

TEST(GuardedCopy, AFileThatWasTruncatedIsAnErrorAndNoSignal) {
  const Fd memfd = sys::MemfdCreate("bar", 0).value();
  ASSERT_TRUE(sys::Ftruncate(memfd.get(), 2 * kPageSize));
  const HostMapping mapping =
      HostMapping::Map(memfd.get(), 0, 2 * kPageSize, PROT_READ | PROT_WRITE).value();
  ASSERT_TRUE(sys::Ftruncate(memfd.get(), kPageSize));
  std::array<std::byte, 8> data{};
  EXPECT_TRUE(GuardedRead(mapping.address(), data));
  EXPECT_EQ(GuardedRead(mapping.address() + kPageSize, data).error().code(), EFAULT);
  EXPECT_EQ(GuardedWrite(mapping.address() + kPageSize, data).error().code(), EFAULT);
  EXPECT_EQ(GuardedRead(mapping.address() + (kPageSize - 4), data).error().code(), EFAULT);
}

}  // namespace
}  // namespace crossbar
