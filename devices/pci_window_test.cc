#include "devices/pci_window.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

namespace crossbar {
namespace {

// Reads as its number in every byte, and remembers the last write.
class Numbered : public BusDevice {
 public:
  explicit Numbered(uint8_t number) : number_(number) {}
  uint64_t Read(uint64_t, unsigned size) override {
    return 0x0101010101010101u * number_ & AllOnes(size);
  }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    written = {offset, size, value};
  }
  std::tuple<uint64_t, unsigned, uint64_t> written;

 private:
  const uint8_t number_;
};

class PciWindowTest : public ::testing::Test {
 protected:
  PciWindow window_{0x1000, 0x1000};
  std::shared_ptr<Numbered> one_ = std::make_shared<Numbered>(0x11);
  std::shared_ptr<Numbered> two_ = std::make_shared<Numbered>(0x22);
};

TEST_F(PciWindowTest, WhereNobodyDecodesItReadsAllOnes) {
  EXPECT_EQ(window_.Read(0, 8), ~0ull);
  window_.Write(0, 8, 0);
}

TEST_F(PciWindowTest, TheOldestAnswersAndTheNextWhenItHasGone) {
  window_.Add(0x1000, 0x100, one_);
  window_.Add(0x1080, 0x100, two_);
  EXPECT_EQ(window_.Read(0x80, 2), 0x1111u);
  EXPECT_EQ(window_.Read(0x100, 2), 0x2222u);
  window_.Remove(one_.get());
  EXPECT_EQ(window_.Read(0x80, 2), 0x2222u);
  EXPECT_EQ(window_.Read(0, 2), 0xffffu);
}

TEST_F(PciWindowTest, TheOldestIsByOrderAndNotByWhoWasAddedFirst) {
  window_.Add(0x1000, 0x100, two_, 2);
  window_.Add(0x1000, 0x100, one_, 1);
  EXPECT_EQ(window_.Read(0, 1), 0x11u);
  window_.Remove(one_.get());
  EXPECT_EQ(window_.Read(0, 1), 0x22u);
}

TEST_F(PciWindowTest, AnAccessOverAnEdgeGoesByBytes) {
  window_.Add(0x1000, 0x10, one_);
  EXPECT_EQ(window_.Read(0xe, 4), 0xffff1111u);
  window_.Add(0x1010, 0x10, two_);
  EXPECT_EQ(window_.Read(0xe, 4), 0x22221111u);
  window_.Write(0xf, 2, 0xbbaa);
  EXPECT_EQ(one_->written, std::tuple(0xfu, 1u, 0xaau));
  EXPECT_EQ(two_->written, std::tuple(0u, 1u, 0xbbu));
}

TEST_F(PciWindowTest, AnAccessThatBeginsInAYoungerBarLeavesTheOlderItsBytes) {
  window_.Add(0x1010, 0x10, one_);
  window_.Add(0x1000, 0x1000, two_);
  EXPECT_EQ(window_.Read(0xe, 4), 0x11112222u);
  window_.Write(0xe, 4, 0xddccbbaa);
  EXPECT_EQ(one_->written, std::tuple(1u, 1u, 0xddu));
  EXPECT_EQ(two_->written, std::tuple(0xfu, 1u, 0xbbu));
}

// Reads as 0x33, and has something happen in the middle of the access.
class Meddling : public BusDevice {
 public:
  explicit Meddling(std::function<void()> meddle) : meddle_(std::move(meddle)) {}
  uint64_t Read(uint64_t, unsigned size) override {
    meddle_();
    return 0x3333333333333333u & AllOnes(size);
  }
  void Write(uint64_t, unsigned, uint64_t) override { meddle_(); }

 private:
  const std::function<void()> meddle_;
};

TEST_F(PciWindowTest, WhoAnswersIsSettledBeforeTheFirstByte) {
  window_.Add(0x1000, 0x10, std::make_shared<Meddling>([&] { window_.Add(0x1010, 0x10, two_); }));
  EXPECT_EQ(window_.Read(0xe, 4), 0xffff3333u) << "a BAR that comes in the middle answers nothing of it";
  EXPECT_EQ(window_.Read(0xe, 4), 0x22223333u);
  while (window_.Read(0x10, 1) != 0xff) window_.Remove(two_.get());
  window_.Write(0xe, 4, 0);
  EXPECT_EQ(two_->written, decltype(two_->written)());
}

TEST_F(PciWindowTest, ABarThatComesAndGoesAnswersAllOfAnAccessOrNothing) {
  std::jthread toggles([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      window_.Add(0x1000, 0x1000, two_);
      window_.Remove(two_.get());
    }
  });
  unsigned answered = 0;
  for (int i = 0; i < 100'000 || (answered == 0 && i < 100'000'000); ++i) {
    const uint64_t value = window_.Read(0x100, 8);
    if (value == ~0ull) continue;
    ASSERT_EQ(value, 0x2222222222222222u) << "torn";
    ++answered;
  }
  EXPECT_NE(answered, 0u);
}

TEST_F(PciWindowTest, ContainsIsRightAtItsEdges) {
  EXPECT_TRUE(window_.Contains(0x1000, 0x1000));
  EXPECT_FALSE(window_.Contains(0xfff, 2));
  EXPECT_FALSE(window_.Contains(0x1fff, 2));
  EXPECT_FALSE(window_.Contains(0x1800, ~0ull));
}

}  // namespace
}  // namespace crossbar
