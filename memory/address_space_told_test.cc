// What AddressSpace writes for people: which lines, and never under its lock.
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <thread>

#include "base/log.h"
#include "memory/testing/full_stderr.h"
#include "memory/testing/heart.h"

namespace crossbar::testing {
namespace {

struct Told : ::testing::Test {
  Told() {
    log::SetLevel(LogLevel::kWarning);
    heart.a.refuse = [](GuestRange, const Backing&) { return "full"; };
  }
  ~Told() override { log::SetLevel(LogLevel::kInfo); }
  template <typename Work>
  static size_t LinesOf(Work work) {
    ::testing::internal::CaptureStderr();
    work();
    const std::string text = ::testing::internal::GetCapturedStderr();
    return static_cast<size_t>(std::ranges::count(text, '\n'));
  }
  Heart heart;
  const AddressSpace::DomainHandle a = heart.Join(heart.a);
};

TEST_F(Told, G6EveryBarThatIsRefusedIsNamedOnceAndRepeatsAreLimited) {
  std::vector<std::unique_ptr<FakeOwner>> owners;
  std::vector<Mapping> mappings;
  EXPECT_EQ(LinesOf([&] {
              for (uint64_t i = 0; i < 40; ++i) {
                owners.push_back(std::make_unique<FakeOwner>(fmt::format("device {}", i / 4)));
                mappings.push_back(heart.Map(Of({Bar(0x1000 + i * 0x1000, 0x1000,
                                                     owners.back().get(), uint8_t(i % 4))})));
              }
            }),
            40u);
  EXPECT_LE(LinesOf([&] {
              for (int i = 0; i < 100; ++i) {
                mappings.back() = {};
                mappings.back() = heart.Map(Of({Bar(0x28000, 0x1000, owners.back().get(), 3)}));
              }
            }),
            RateLimit::kBurst + 1);
}

// Whoever does not read stderr must not hold up everybody's zaps.
TEST_F(Told, G10NoLineIsWrittenUnderTheLock) {
  FakeOwner owner("stuck");
  Mapping other = heart.Map(Of({Bar(0x9000)}));
  FullStderr full;
  auto stuck = std::async(std::launch::async, [&] {
    return heart.Map(Of({Bar(0x1000, 0x1000, &owner)}));
  });
  while (!heart.Finds(0x1000)) std::this_thread::yield();
  auto zap = std::async(std::launch::async, [&] { heart.Zap({&other}); });
  const auto ended = zap.wait_for(std::chrono::seconds(5));
  const auto written = stuck.wait_for(std::chrono::milliseconds(20));
  full.Drain();
  const Mapping mapping = stuck.get();
  zap.get();
  EXPECT_EQ(ended, std::future_status::ready) << "the zap waits for a line to be written";
  EXPECT_EQ(written, std::future_status::timeout) << "nothing was stuck";
}

}  // namespace
}  // namespace crossbar::testing
