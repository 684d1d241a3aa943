#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace crossbar {
namespace {

Result<int> Half(int value) {
  if (value % 2 != 0) return Fail("{} is odd", value);
  return value / 2;
}

Result<int> Quarter(int value) {
  const int half = TRY(Half(value));
  return TRY(Half(half));
}

TEST(Result, TryReturnsTheValueOrTheFirstError) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(Quarter(6).error().message(), "3 is odd");
}

TEST(Result, TryMovesMoveOnlyValues) {
  const auto make = []() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(7); };
  const auto use = [&]() -> Result<int> { return *TRY(make()); };
  EXPECT_EQ(use().value(), 7);
}

TEST(Result, TryWorksOnVoid) {
  const auto fails = []() -> Result<> { return Fail("no"); };
  const auto use = [&]() -> Result<> {
    TRY(fails());
    return {};
  };
  EXPECT_EQ(use().error().message(), "no");
}

TEST(Result, ErrorReadsAsAChainWithTheInnermostHintLast) {
  Error error = Error(13, "open /dev/kvm: Permission denied").WithHint("join group kvm");
  error = std::move(error).Within("cannot start").WithHint("an outer hint that knows less");
  EXPECT_EQ(error.ToString(), "cannot start: open /dev/kvm: Permission denied; join group kvm");
  EXPECT_EQ(error.code(), 13);
}

}  // namespace
}  // namespace crossbar
