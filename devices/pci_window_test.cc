#include "devices/pci_window.h"

#include <gtest/gtest.h>

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

TEST_F(PciWindowTest, AnAccessOverAnEdgeGoesByBytes) {
  window_.Add(0x1000, 0x10, one_);
  EXPECT_EQ(window_.Read(0xe, 4), 0xffff1111u);
  window_.Add(0x1010, 0x10, two_);
  EXPECT_EQ(window_.Read(0xe, 4), 0x22221111u);
  window_.Write(0xf, 2, 0xbbaa);
  EXPECT_EQ(one_->written, std::tuple(0xfu, 1u, 0xaau));
  EXPECT_EQ(two_->written, std::tuple(0u, 1u, 0xbbu));
}

TEST_F(PciWindowTest, ContainsIsRightAtItsEdges) {
  EXPECT_TRUE(window_.Contains(0x1000, 0x1000));
  EXPECT_FALSE(window_.Contains(0xfff, 2));
  EXPECT_FALSE(window_.Contains(0x1fff, 2));
  EXPECT_FALSE(window_.Contains(0x1800, ~0ull));
}

}  // namespace
}  // namespace crossbar
