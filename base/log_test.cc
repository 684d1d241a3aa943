#include "base/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <string>

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

TEST(Log, NobodyWaitsLongForWhoDoesNotReadIt) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  std::string fill(4096, 'x');
  while (::write(ends[1], fill.data(), fill.size()) > 0) {}
  ASSERT_EQ(::fcntl(ends[1], F_SETFL, 0), 0);  // as a stderr is
  const int before = ::dup(STDERR_FILENO);
  ::dup2(ends[1], STDERR_FILENO);
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) log::WriteStderr("dropped\n");
  const auto taken = std::chrono::steady_clock::now() - begun;
  while (::read(ends[0], fill.data(), fill.size()) > 0) {}
  log::WriteStderr("written\n");
  ::dup2(before, STDERR_FILENO);
  ::close(before);
  const ssize_t size = ::read(ends[0], fill.data(), fill.size());
  ASSERT_GT(size, 0);
  EXPECT_EQ(fill.substr(0, static_cast<size_t>(size)), "written\n");
  EXPECT_LT(taken, std::chrono::seconds(10));
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace crossbar
