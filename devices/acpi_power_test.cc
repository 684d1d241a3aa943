#include "devices/acpi_power.h"

#include <gtest/gtest.h>

namespace crossbar {
namespace {

constexpr uint8_t kS5 = 5;
constexpr uint64_t kEnable = 1 << 5;

TEST(SleepControlTest, S5WithTheEnableBitPowersOff) {
  int offs = 0;
  SleepControl control(kS5, [&] { ++offs; });
  control.Write(0, 1, kS5 << 2);
  EXPECT_EQ(offs, 0) << "the type alone does nothing";
  control.Write(0, 1, kS5 << 2 | kEnable);
  EXPECT_EQ(offs, 1);
  control.Write(0, 1, 0xc3 | kS5 << 2 | kEnable);
  EXPECT_EQ(offs, 2) << "reserved bits are ignored";
}

TEST(SleepControlTest, NoOtherSleepTypePowersOff) {
  SleepControl control(kS5, [] { ADD_FAILURE(); });
  for (unsigned type = 0; type < 8; ++type) {
    if (type != kS5) control.Write(0, 1, type << 2 | kEnable);
  }
}

TEST(SleepControlTest, TheEnableBitReadsAsZero) {
  SleepControl control(kS5, [] {});
  control.Write(0, 1, 0xe3 | kS5 << 2);  // all but the other bits of the type
  EXPECT_EQ(control.Read(0, 1), uint64_t{kS5} << 2);
  control.Reset();
  EXPECT_EQ(control.Read(0, 1), 0u);
}

TEST(SleepStatusTest, TheWakeBitIsNeverSet) {
  SleepStatus status;
  EXPECT_EQ(status.Read(0, 1), 0u);
  status.Write(0, 1, 0x80);
  EXPECT_EQ(status.Read(0, 1), 0u);
}

TEST(ResetControlTest, Bit2ResetsAndBit1AloneArms) {
  int resets = 0;
  ResetControl control([&] { ++resets; });
  control.Write(0x02);
  EXPECT_EQ(resets, 0);
  EXPECT_EQ(control.Read(), 0x02);
  control.Write(0x06);
  EXPECT_EQ(resets, 1);
  control.Write(0x0e);
  EXPECT_EQ(resets, 2);
  EXPECT_EQ(control.Read(), 0x0a) << "the reset bit does not stick";
  control.Write(0xf1);
  EXPECT_EQ(resets, 2);
  EXPECT_EQ(control.Read(), 0);
}

TEST(ResetControlTest, ResetClearsWhatWasArmed) {
  ResetControl control([] {});
  control.Write(0x02);
  control.Reset();
  EXPECT_EQ(control.Read(), 0);
}

TEST(KeyboardResetTest, OnlyTheResetPulseResets) {
  int resets = 0;
  KeyboardReset keyboard([&] { ++resets; });
  for (unsigned value = 0; value < 256; ++value) keyboard.Write(0, 1, value);
  EXPECT_EQ(resets, 1);
  keyboard.Write(0, 1, 0xfe);
  EXPECT_EQ(resets, 2);
}

// Output full for ever: drivers find no controller. Input empty: nobody waits to send the reset.
TEST(KeyboardResetTest, TheStatusSaysThatACommandMayBeSentAndThatNoControllerIsThere) {
  KeyboardReset keyboard([] {});
  EXPECT_EQ(keyboard.Read(0, 1) & 3, 1u);
}

}  // namespace
}  // namespace crossbar
