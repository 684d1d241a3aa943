#include "devices/bus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Access = std::tuple<uint64_t, unsigned, uint64_t>;  // offset, size, value

// Reads as `fill` in every byte; records writes; runs `on_access` first.
class FakeDevice : public BusDevice {
 public:
  explicit FakeDevice(uint8_t fill) : fill_(fill) {}

  uint64_t Read(uint64_t offset, unsigned size) override {
    if (on_access) on_access();
    reads.emplace_back(offset, size, 0);
    return (0x0101010101010101ull * fill_) & AllOnes(size);
  }
  void Write(uint64_t offset, unsigned size, uint64_t value) override {
    if (on_access) on_access();
    writes.emplace_back(offset, size, value);
  }

  std::function<void()> on_access;
  std::vector<Access> reads;
  std::vector<Access> writes;

 private:
  const uint8_t fill_;
};

template <typename T>
T ReadAt(TrapBus::Cursor& cursor, uint64_t address) {
  std::array<uint8_t, 8> data = {};
  cursor.Read(address, data.data(), sizeof(T));
  T value;
  std::memcpy(&value, data.data(), sizeof(T));
  return value;
}

template <typename T>
void WriteAt(TrapBus::Cursor& cursor, uint64_t address, T value) {
  std::array<uint8_t, sizeof(T)> data;
  std::memcpy(data.data(), &value, sizeof(T));
  cursor.Write(address, data.data(), sizeof(T));
}

TEST(TrapBusTest, AnAccessReachesTheDeviceWithItsOffset) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0x5a);
  ASSERT_TRUE(bus.Add(0x1000, 0x100, device));
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint32_t>(cursor, 0x1010), 0x5a5a5a5au);
  WriteAt<uint16_t>(cursor, 0x10fe, 0xbeef);
  EXPECT_THAT(device->reads, ElementsAre(Access{0x10, 4, 0}));
  EXPECT_THAT(device->writes, ElementsAre(Access{0xfe, 2, 0xbeef}));
}

TEST(TrapBusTest, EachSizeMovesItsBytesAndNoOthers) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0x5a);
  ASSERT_TRUE(bus.Add(0, 8, device));
  TrapBus::Cursor cursor(bus);
  const std::array<uint8_t, 8> written = {0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88};
  for (const unsigned size : {1u, 2u, 4u, 8u}) {
    cursor.Write(0, written.data(), size);
    EXPECT_EQ(device->writes.back(), (Access{0, size, 0x8877665544332211 & AllOnes(size)}));
    std::array<uint8_t, 8> read = {};
    cursor.Read(0, read.data(), size);
    for (unsigned i = 0; i < 8; ++i) EXPECT_EQ(read[i], i < size ? 0x5a : 0) << size << ", " << i;
  }
}

TEST(TrapBusTest, ADeviceAddedAsItsBaseAnswersAsItself) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0x5a);
  ASSERT_TRUE(bus.Add(0, 8, std::shared_ptr<BusDevice>(device)));
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 1), 0x5a);
  WriteAt<uint8_t>(cursor, 2, 3);
  EXPECT_THAT(device->writes, ElementsAre(Access{2, 1, 3}));
}

TEST(TrapBusTest, NobodyReadsAsAllOnesAndDropsWrites) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0);
  ASSERT_TRUE(bus.Add(0x1000, 0x10, device));
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint64_t>(cursor, 0x1010), ~0ull);
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0xfff), 0xff);
  WriteAt<uint64_t>(cursor, 0, 1);
  EXPECT_TRUE(device->writes.empty());
}

TEST(TrapBusTest, AnAccessAcrossAnEdgeIsSplitIntoBytes) {
  TrapBus bus;
  auto low = std::make_shared<FakeDevice>(0x11);
  auto high = std::make_shared<FakeDevice>(0x22);
  ASSERT_TRUE(bus.Add(0x100, 2, low));
  ASSERT_TRUE(bus.Add(0x102, 1, high));
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint32_t>(cursor, 0x100), 0xff221111u);
  WriteAt<uint32_t>(cursor, 0x101, 0xddccbbaa);
  EXPECT_THAT(low->writes, ElementsAre(Access{1, 1, 0xaa}));
  EXPECT_THAT(high->writes, ElementsAre(Access{0, 1, 0xbb}));
}

TEST(TrapBusTest, AnOddSizeIsSplitIntoBytes) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0x33);
  ASSERT_TRUE(bus.Add(0, 8, device));
  TrapBus::Cursor cursor(bus);
  const std::array<uint8_t, 3> data = {1, 2, 3};
  cursor.Write(4, data.data(), 3);
  EXPECT_THAT(device->writes, ElementsAre(Access{4, 1, 1}, Access{5, 1, 2}, Access{6, 1, 3}));
  std::array<uint8_t, 4> read = {};
  cursor.Read(4, read.data(), 3);
  EXPECT_THAT(read, ElementsAre(0x33, 0x33, 0x33, 0));
  EXPECT_THAT(device->reads, ElementsAre(Access{4, 1, 0}, Access{5, 1, 0}, Access{6, 1, 0}));
}

TEST(TrapBusTest, TheLastByteOfTheAddressSpaceWorksAndNothingWrapsToZero) {
  TrapBus bus;
  auto first = std::make_shared<FakeDevice>(0x11);
  auto last = std::make_shared<FakeDevice>(0x22);
  ASSERT_TRUE(bus.Add(0, 0x10, first));
  ASSERT_TRUE(bus.Add(~0ull - 0xf, 0x10, last));
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint8_t>(cursor, ~0ull), 0x22);
  EXPECT_EQ(ReadAt<uint64_t>(cursor, ~0ull - 7), 0x2222222222222222u);
  EXPECT_EQ(ReadAt<uint32_t>(cursor, ~0ull - 1), 0xffff2222u);
  WriteAt<uint32_t>(cursor, ~0ull, 0x44332211);
  EXPECT_THAT(last->writes, ElementsAre(Access{0xf, 1, 0x11}));
  EXPECT_TRUE(first->writes.empty());
}

TEST(TrapBusTest, OverlappingEmptyAndWrappingRangesAreRefused) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0);
  ASSERT_TRUE(bus.Add(0x1000, 0x1000, device));
  ASSERT_TRUE(bus.Add(~0ull, 1, device));
  for (const auto& [start, size] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0x1000, 0x1000}, {0xfff, 2}, {0x1fff, 1}, {0, ~0ull}, {0x1800, 0x10}, {~0ull - 1, 2}}) {
    const Result<> result = bus.Add(start, size, device);
    ASSERT_FALSE(result) << start;
    EXPECT_THAT(result.error().ToString(), HasSubstr("overlaps")) << start;
  }
  for (const uint64_t start : {0x0ull, 0x3000ull}) {
    const Result<> empty = bus.Add(start, 0, device);
    ASSERT_FALSE(empty);
    EXPECT_THAT(empty.error().ToString(), HasSubstr("empty"));
  }
  EXPECT_FALSE(bus.Add(0x3000, ~0ull, device));
  EXPECT_TRUE(bus.Add(0x2000, 0x1000, device));
  EXPECT_TRUE(bus.Add(0xfff, 1, device));
}

TEST(TrapBusTest, ACursorThatKnowsADeviceLosesItOnRemove) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(0);
  ASSERT_TRUE(bus.Add(0x100, 8, device));
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x100), 0);
  EXPECT_FALSE(bus.Remove(0xff)) << "no device starts there";
  EXPECT_FALSE(bus.Remove(0x101));
  EXPECT_TRUE(bus.Remove(0x100));
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x100), 0xff);
  EXPECT_EQ(device.use_count(), 1);
  EXPECT_FALSE(bus.Remove(0x100));
}

TEST(TrapBusTest, ACursorThatMissedFindsADeviceAddedLater) {
  TrapBus bus;
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x100), 0xff);
  ASSERT_TRUE(bus.Add(0x100, 8, std::make_shared<FakeDevice>(7)));
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x100), 7);
}

// Each change would deadlock (TSan: double lock) if the bus held its lock around the handler.
TEST(TrapBusTest, G10NoLockIsHeldWhileAHandlerRuns) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(1);
  ASSERT_TRUE(bus.Add(0x100, 8, device));
  ASSERT_TRUE(bus.Add(0x200, 8, std::make_shared<FakeDevice>(2)));
  device->on_access = [&] {
    EXPECT_TRUE(bus.Remove(0x100));  // itself
    EXPECT_TRUE(bus.Remove(0x200));
    EXPECT_TRUE(bus.Add(0x300, 8, std::make_shared<FakeDevice>(3)));
    TrapBus::Cursor inner(bus);
    EXPECT_EQ(ReadAt<uint8_t>(inner, 0x300), 3);
  };
  TrapBus::Cursor cursor(bus);
  const std::weak_ptr<FakeDevice> alive = device;
  device.reset();
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x100), 1) << "the device outlives its own removal";
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x100), 0xff);
  EXPECT_EQ(ReadAt<uint8_t>(cursor, 0x200), 0xff);
  EXPECT_TRUE(alive.expired());

  auto written = std::make_shared<FakeDevice>(4);
  ASSERT_TRUE(bus.Add(0x400, 8, written));
  written->on_access = [&] { EXPECT_TRUE(bus.Remove(0x400)); };
  WriteAt<uint8_t>(cursor, 0x400, 5);
  WriteAt<uint8_t>(cursor, 0x400, 6);
  EXPECT_THAT(written->writes, ElementsAre(Access{0, 1, 5}));
}

TEST(TrapBusTest, ADeviceThatRemovesItselfAnswersOnlyTheFirstByteOfASplitAccess) {
  TrapBus bus;
  auto device = std::make_shared<FakeDevice>(1);
  ASSERT_TRUE(bus.Add(0x100, 2, device));
  device->on_access = [&] { bus.Remove(0x100); };
  TrapBus::Cursor cursor(bus);
  EXPECT_EQ(ReadAt<uint32_t>(cursor, 0x100), 0xffffff01u);
}

class RemovesOtherWhenDestroyed : public FakeDevice {
 public:
  explicit RemovesOtherWhenDestroyed(TrapBus& bus) : FakeDevice(0), bus_(bus) {}
  ~RemovesOtherWhenDestroyed() override { EXPECT_TRUE(bus_.Remove(0x200)); }

 private:
  TrapBus& bus_;
};

TEST(TrapBusTest, G10NoLockIsHeldWhileADeviceIsDestroyed) {
  TrapBus bus;
  ASSERT_TRUE(bus.Add(0x100, 8, std::make_shared<RemovesOtherWhenDestroyed>(bus)));
  ASSERT_TRUE(bus.Add(0x200, 8, std::make_shared<FakeDevice>(2)));
  EXPECT_TRUE(bus.Remove(0x100));
  EXPECT_FALSE(bus.Remove(0x200)) << "the destructor has";
}

class CountingDevice : public BusDevice {
 public:
  uint64_t Read(uint64_t, unsigned) override { return ++accesses; }
  void Write(uint64_t, unsigned, uint64_t) override { ++accesses; }
  std::atomic<uint64_t> accesses = 0;
};

TEST(TrapBusTest, WhileCursorsReadNoneReachesADeviceThatAnotherThreadRemoved) {
  constexpr int kVcpus = 2;
  constexpr int kDevices = 40;
  TrapBus bus;
  ASSERT_TRUE(bus.Add(0x200, 8, std::make_shared<CountingDevice>()));
  std::atomic<bool> stop = false;
  std::array<std::atomic<uint64_t>, kVcpus> rounds = {};

  std::vector<std::thread> vcpus;
  for (auto& round : rounds) {
    vcpus.emplace_back([&] {
      TrapBus::Cursor cursor(bus);
      while (!stop) {
        ReadAt<uint8_t>(cursor, 0x100);
        ReadAt<uint8_t>(cursor, 0x101);
        ReadAt<uint16_t>(cursor, 0x200);
        WriteAt<uint32_t>(cursor, 0x106, 0);
        ++round;
      }
    });
  }
  // Until every vCPU has made at least one whole round.
  const auto wait = [&] {
    for (auto& round : rounds) {
      for (const uint64_t until = round + 2; round < until;) std::this_thread::yield();
    }
  };
  std::vector<std::shared_ptr<CountingDevice>> devices;
  std::vector<uint64_t> final_counts;
  for (int i = 0; i < kDevices; ++i) {
    devices.push_back(std::make_shared<CountingDevice>());
    ASSERT_TRUE(bus.Add(0x100, 8, devices.back()));
    wait();
    ASSERT_TRUE(bus.Remove(0x100));
    wait();  // for what was under way
    final_counts.push_back(devices.back()->accesses);
  }
  stop = true;
  for (std::thread& vcpu : vcpus) vcpu.join();
  for (size_t i = 0; i < devices.size(); ++i) {
    EXPECT_GT(final_counts[i], 0u) << i;
    EXPECT_EQ(devices[i]->accesses, final_counts[i]) << i;
    EXPECT_EQ(devices[i].use_count(), 1) << i;
  }
}

TEST(TrapBusDeathTest, AnAccessOfNoSizeIsABrokenInvariant) {
  TrapBus bus;
  TrapBus::Cursor cursor(bus);
  std::array<uint8_t, 16> data = {};
  EXPECT_DEATH(cursor.Read(0, data.data(), 0), "CHECK");
  EXPECT_DEATH(cursor.Write(0, data.data(), 9), "CHECK");
}

}  // namespace
}  // namespace crossbar
