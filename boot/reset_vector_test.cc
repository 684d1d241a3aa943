#include "boot/reset_vector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "boot/tables_testing.h"

namespace crossbar {
namespace {

constexpr GuestRange kVector{Gpa(0xffff0), 0x10};

std::vector<uint8_t> Bytes(const GuestRam& ram) {
  std::vector<uint8_t> bytes(kVector.size);
  EXPECT_TRUE(ram.Read(kVector.start, std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

TEST(ResetVector, WritesThePlatformsValueToItsPortAndHalts) {
  const GuestRam ram = testing_tables::SmallRam();
  const PlatformInfo::Power power{.reset_port = 0x1234, .reset_value = 0x56};
  ASSERT_TRUE(WriteResetVector(ram, power));
  const std::vector<uint8_t> code = {0xba, 0x34, 0x12,  // mov dx, 0x1234
                                     0xb0, 0x56,        // mov al, 0x56
                                     0xee,              // out dx, al
                                     0xf4, 0xeb, 0xfd,  // hlt, for ever
                                     0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(Bytes(ram), code);
}

TEST(ResetVector, IsWrittenAnewOverWhatAGuestLeftAndNothingElseIs) {
  const GuestRam ram = testing_tables::SmallRam();
  ASSERT_TRUE(WriteResetVector(ram, {.reset_port = 0xcf9, .reset_value = 6}));
  const std::vector<uint8_t> code = Bytes(ram);
  const std::span<std::byte> all = *ram.At({Gpa(0), 2 * kMiB});
  std::ranges::fill(all, std::byte{0xff});
  ASSERT_TRUE(WriteResetVector(ram, {.reset_port = 0xcf9, .reset_value = 6}));
  EXPECT_EQ(Bytes(ram), code);
  EXPECT_EQ(std::ranges::count(all, std::byte{0xff}), static_cast<int64_t>(2 * kMiB - kVector.size));
}

}  // namespace
}  // namespace crossbar
