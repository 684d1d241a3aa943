#include "base/log.h"

#include <gtest/gtest.h>

namespace crossbar {
namespace {

TEST(Log, ParsesEveryLevelAndRefusesOthers) {
  EXPECT_EQ(log::ParseLevel("error").value(), LogLevel::kError);
  EXPECT_EQ(log::ParseLevel("debug").value(), LogLevel::kDebug);
  EXPECT_FALSE(log::ParseLevel("trace"));
  EXPECT_FALSE(log::ParseLevel("loud"));
}

TEST(Log, WritesOneLineAtOrAboveTheLevelOnly) {
  log::SetLevel(LogLevel::kWarning);
  testing::internal::CaptureStderr();
  LogInfo("below {}", 1);
  LogWarning("at {}", 2);
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("below"), std::string::npos);
  EXPECT_NE(text.find("warning: at 2\n"), std::string::npos);
}

TEST(Log, RateLimitWithholdsAFloodAndSaysHowMuch) {
  log::SetLevel(LogLevel::kWarning);
  RateLimit limit;
  testing::internal::CaptureStderr();
  for (int i = 0; i < 10000; ++i) LogGuest(limit, "guest wrote {}", i);
  const std::string text = testing::internal::GetCapturedStderr();
  const auto lines = std::count(text.begin(), text.end(), '\n');
  EXPECT_GE(lines, RateLimit::kBurst);
  EXPECT_LT(lines, 20);
}

TEST(Log, WhatAGuestDidHasALevelToo) {
  RateLimit limit;
  testing::internal::CaptureStderr();
  log::SetLevel(LogLevel::kWarning);
  LogGuestAt(LogLevel::kInfo, limit, "below");
  log::SetLevel(LogLevel::kInfo);
  LogGuestAt(LogLevel::kInfo, limit, "at");
  log::SetLevel(LogLevel::kWarning);
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("below"), std::string::npos);
  EXPECT_NE(text.find("info: at\n"), std::string::npos);
}

}  // namespace
}  // namespace crossbar
