#include "devices/pci_access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Access = std::tuple<uint16_t, unsigned, uint32_t>;  // offset, size, value

// Every register is writable; records writes and checks what callers promise.
class OpenFunction : public PciFunction {
 public:
  uint32_t ReadConfig(uint16_t offset, unsigned size) override {
    ExpectNatural(offset, size);
    if (on_access) on_access();
    return config.Read(offset, size);
  }
  void WriteConfig(uint16_t offset, unsigned size, uint32_t value) override {
    ExpectNatural(offset, size);
    if (on_access) on_access();
    EXPECT_LE(value, AllOnes(size));
    writes.emplace_back(offset, size, value);
    config.SetWritable<uint32_t>(offset & 0xffc, ~0u);
    config.Write(offset, size, value);
  }
  void Reset() override {}

  std::function<void()> on_access;
  PciConfigSpace config;
  std::vector<Access> writes;

 private:
  static void ExpectNatural(uint16_t offset, unsigned size) {
    EXPECT_TRUE(size == 1 || size == 2 || size == 4) << size;
    EXPECT_EQ(offset % size, 0u);
    EXPECT_LE(offset + size, 4096u);
  }
};

class PciAccessTest : public ::testing::Test {
 protected:
  PciAccessTest() {
    // The header type is the root's business.
    EXPECT_TRUE(root_.root_bus().Add({3, 0}, function_));
    EXPECT_TRUE(root_.root_bus().Add({3, 1}, second_));
    for (uint16_t at = 0; at < 4096; ++at) {
      function_->config.Set<uint8_t>(at, static_cast<uint8_t>(at * 7));
    }
  }
  static constexpr uint64_t kEcam = 3 << 15;
  static constexpr uint64_t kCf8 = 0x80000000 | 3 << 11;

  PciRoot root_{0, 3};
  std::shared_ptr<OpenFunction> function_ = std::make_shared<OpenFunction>();
  std::shared_ptr<OpenFunction> second_ = std::make_shared<OpenFunction>();
  int resets_ = 0;
  ResetControl reset_control_{[this] { ++resets_; }};
  EcamWindow ecam_{root_};
  Cf8Ports ports_{root_, reset_control_};
};

TEST_F(PciAccessTest, TheEcamWindowHasOneMebibyteABus) {
  EXPECT_EQ(ecam_.size(), 4u << 20);
  PciRoot all(0, 255);
  EXPECT_EQ(EcamWindow(all).size(), 256u << 20);
}

TEST_F(PciAccessTest, EcamReachesAllFourKibibytes) {
  EXPECT_EQ(ecam_.Read(kEcam + 0x10, 1), 0x70u);
  EXPECT_EQ(ecam_.Read(kEcam + 0x10, 2), 0x7770u);
  EXPECT_EQ(ecam_.Read(kEcam + 0x10, 4), 0x857e7770u);
  EXPECT_EQ(ecam_.Read(kEcam + 0xffc, 4), 0xf9f2ebe4u);
  ecam_.Write(kEcam + 0xffe, 2, 0xabcd);
  EXPECT_THAT(function_->writes, ElementsAre(Access{0xffe, 2, 0xabcd}));
  EXPECT_EQ(ecam_.Read((1 << 20) + kEcam, 4), 0xffffffffu) << "bus 1";
  EXPECT_EQ(ecam_.Read(ecam_.size() - 8, 8), ~0ull);
}

TEST_F(PciAccessTest, EcamBusNumbersCountFromTheRootBus) {
  PciRoot root(8, 9);
  auto function = std::make_shared<OpenFunction>();
  function->config.Set<uint32_t>(0, 0x1234);
  ASSERT_TRUE(root.root_bus().Add({0, 0}, function));
  EcamWindow ecam(root);
  EXPECT_EQ(ecam.Read(0, 4), 0x1234u);
  EXPECT_EQ(ecam.Read(1 << 20, 4), 0xffffffffu);
}

TEST_F(PciAccessTest, EcamSplitsEightBytesAndWhatIsMisaligned) {
  ecam_.Write(kEcam + 0x40, 8, 0x8877665544332211);
  EXPECT_THAT(function_->writes,
              ElementsAre(Access{0x40, 4, 0x44332211}, Access{0x44, 4, 0x88776655}));
  EXPECT_EQ(ecam_.Read(kEcam + 0x40, 8), 0x8877665544332211u);
  EXPECT_EQ(ecam_.Read(kEcam + 0x41, 4), 0x55443322u);
  function_->writes.clear();
  ecam_.Write(kEcam + 0x51, 4, 0xddccbbaa);
  EXPECT_THAT(function_->writes,
              ElementsAre(Access{0x51, 1, 0xaa}, Access{0x52, 2, 0xccbb}, Access{0x54, 1, 0xdd}));
}

TEST_F(PciAccessTest, AnAccessAcrossTwoFunctionsReachesBoth) {
  ecam_.Write(kEcam + 0xffe, 4, 0x44332211);
  EXPECT_THAT(function_->writes, ElementsAre(Access{0xffe, 2, 0x2211}));
  EXPECT_THAT(second_->writes, ElementsAre(Access{0, 2, 0x4433}));
}

TEST_F(PciAccessTest, Cf8SelectsWhatCfcReadsAndWrites) {
  ports_.Write(0, 4, kCf8 | 0x40);
  EXPECT_EQ(ports_.Read(0, 4), kCf8 | 0x40);
  EXPECT_EQ(ports_.Read(4, 4), ecam_.Read(kEcam + 0x40, 4));
  EXPECT_EQ(ports_.Read(6, 2), ecam_.Read(kEcam + 0x42, 2));
  EXPECT_EQ(ports_.Read(7, 1), ecam_.Read(kEcam + 0x43, 1));
  ports_.Write(4, 4, 0x44332211);
  ports_.Write(6, 2, 0x6655);
  ports_.Write(5, 1, 0x77);
  EXPECT_THAT(function_->writes, ElementsAre(Access{0x40, 4, 0x44332211}, Access{0x42, 2, 0x6655},
                                             Access{0x41, 1, 0x77}));
}

TEST_F(PciAccessTest, DataIsNobodysWhileTheEnableBitIsClear) {
  EXPECT_EQ(ports_.Read(4, 4), 0xffffffffu);
  ports_.Write(0, 4, kCf8 & 0x7fffffff);
  EXPECT_EQ(ports_.Read(4, 4), 0xffffffffu);
  ports_.Write(4, 4, 0);
  EXPECT_THAT(function_->writes, IsEmpty());
}

TEST_F(PciAccessTest, ReservedAddressBitsReadAsZero) {
  ports_.Write(0, 4, 0xffffffff);
  EXPECT_EQ(ports_.Read(0, 4), 0x80fffffcu);
  ports_.Reset();
  EXPECT_EQ(ports_.Read(0, 4), 0u);
}

// Linux's pci_check_type1 writes the byte 0xcfb first and expects that it changes nothing.
TEST_F(PciAccessTest, OnlyWholeDwordsReachTheAddressRegister) {
  ports_.Write(0, 4, kCf8);
  for (const auto& [offset, size] :
       std::vector<std::pair<uint64_t, unsigned>>{{0, 1}, {2, 1}, {3, 1}, {0, 2}, {1, 2}, {2, 2}}) {
    ports_.Write(offset, size, 0);
    EXPECT_EQ(ports_.Read(offset, size), AllOnes(size)) << offset << "/" << size;
  }
  EXPECT_EQ(ports_.Read(0, 4), kCf8);
}

TEST_F(PciAccessTest, AByteAt0xcf9IsTheResetControlRegister) {
  ports_.Write(0, 4, kCf8);
  ports_.Write(1, 1, 0x02);
  EXPECT_EQ(ports_.Read(1, 1), 0x02u);
  EXPECT_EQ(resets_, 0);
  ports_.Write(1, 1, 0x06);
  EXPECT_EQ(resets_, 1);
  EXPECT_EQ(ports_.Read(0, 4), kCf8) << "the address register is another";
}

TEST_F(PciAccessTest, NoWiderAccessResets) {
  ports_.Write(0, 4, 0x80000600);
  ports_.Write(0, 2, 0x0606);
  ports_.Write(1, 2, 0x0606);
  ports_.Write(1, 4, 0x06060606);
  ports_.Write(0, 8, 0x0606060606060606);
  EXPECT_EQ(resets_, 0);
}

TEST_F(PciAccessTest, AnAccessAcross0xcfcIsTwoAccesses) {
  ports_.Write(0, 4, kCf8 | 0x40);
  EXPECT_EQ(ports_.Read(2, 4), 0xffff | (ecam_.Read(kEcam + 0x40, 2) << 16));
  ports_.Write(3, 2, 0x99ff);
  EXPECT_THAT(function_->writes, ElementsAre(Access{0x40, 1, 0x99}));
}

TEST_F(PciAccessTest, ASplitDataAccessKeepsItsAddress) {
  ports_.Write(0, 4, kCf8 | 0x40);
  const uint64_t expected = ecam_.Read(kEcam + 0x41, 2);
  function_->on_access = [this] { ports_.Write(0, 4, 0x80000000); };  // as another vCPU may
  EXPECT_EQ(ports_.Read(5, 2), expected);
  ports_.Write(0, 4, kCf8 | 0x40);
  ports_.Write(5, 2, 0x2211);
  EXPECT_THAT(function_->writes, ElementsAre(Access{0x41, 1, 0x11}, Access{0x42, 1, 0x22}));
}

// vCPUs that share 0xcf8 without a lock may hit one another's function, never a mixture.
TEST_F(PciAccessTest, ADataAccessUsesOneAddressWhile0xcf8Changes) {
  second_->config.Set<uint32_t>(0x10, 0x11111111);
  function_->config.Set<uint32_t>(0x10, 0x22222222);
  // A mixture would be function 1 at 0x20 or function 0 at 0x10.
  second_->config.Set<uint32_t>(0x20, 0xbad);
  function_->config.Set<uint32_t>(0x20, 0x33333333);
  const auto vcpu = [&](uint64_t address) {
    for (int i = 0; i < 20000; ++i) {
      ports_.Write(0, 4, address);
      const uint64_t value = ports_.Read(4, 4);
      EXPECT_TRUE(value == 0x11111111 || value == 0x33333333) << value;
    }
  };
  std::thread first(vcpu, kCf8 | 1 << 8 | 0x10);
  std::thread second(vcpu, kCf8 | 0x20);
  first.join();
  second.join();
}

}  // namespace
}  // namespace crossbar
