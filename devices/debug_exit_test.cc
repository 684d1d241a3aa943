#include "devices/debug_exit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

namespace crossbar {
namespace {

using ::testing::ElementsAre;

static_assert(DebugExit::ExitStatus(0) == 1);
static_assert(DebugExit::ExitStatus(0x10) == 0x21);
static_assert(DebugExit::ExitStatus(0xff) == 0xff);
static_assert(DebugExit::ExitStatus(~0ull) == 0xff);

TEST(DebugExitTest, WritesOfAnyWidthExitWithAnOddStatus) {
  std::vector<int> statuses;
  DebugExit device([&](int status) { statuses.push_back(status); });
  device.Write(0, 1, 0x00);
  device.Write(0, 2, 0x0110);
  device.Write(0, 4, 0xffff'ff02);
  device.Write(2, 1, 0x03);
  EXPECT_THAT(statuses, ElementsAre(1, 0x21, 5, 7));
}

TEST(DebugExitTest, ReadsAreZeroAndDoNotExit) {
  DebugExit device([](int) { ADD_FAILURE(); });
  EXPECT_EQ(device.Read(0, 1), 0u);
  EXPECT_EQ(device.Read(0, 4), 0u);
}

TEST(DebugExitTest, ADwordAtItsPortIsOneExit) {
  TrapBus bus;
  std::vector<int> statuses;
  ASSERT_TRUE(bus.Add(0xf4, DebugExit::kPorts,
                      std::make_shared<DebugExit>([&](int s) { statuses.push_back(s); })));
  TrapBus::Cursor cursor(bus);
  const std::array<uint8_t, 4> data = {0x21, 0, 0, 0};
  cursor.Write(0xf4, data.data(), 4);
  EXPECT_THAT(statuses, ElementsAre(0x43));
}

}  // namespace
}  // namespace crossbar
