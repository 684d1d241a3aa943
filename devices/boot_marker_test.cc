#include "devices/boot_marker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <thread>

namespace crossbar {
namespace {

TEST(BootMarkerTest, WritesAreNotedInOrderWithRisingTimes) {
  BootMarker marker;
  marker.Write(0, 1, 0x10);
  marker.Write(0, 1, 0x20);
  const BootMarker::Marks marks = marker.Snapshot();
  ASSERT_EQ(marks.first.size(), 2u);
  EXPECT_EQ(marks.first[0].value, 0x10);
  EXPECT_EQ(marks.first[1].value, 0x20);
  EXPECT_GT(marks.first[0].monotonic_ns, 0u);
  EXPECT_GE(marks.first[1].monotonic_ns, marks.first[0].monotonic_ns);
  EXPECT_EQ(marks.last, marks.first[1]);
  EXPECT_EQ(marks.count, 2u);
}

TEST(BootMarkerTest, ReadsReturnTheLastValue) {
  BootMarker marker;
  EXPECT_EQ(marker.Read(0, 1), 0u);
  marker.Write(0, 1, 0x1ab);
  EXPECT_EQ(marker.Read(0, 1), 0xabu);
}

TEST(BootMarkerTest, AGuestThatWritesForeverFillsAListOfBoundedLength) {
  BootMarker marker;
  for (unsigned i = 0; i < 1000; ++i) marker.Write(0, 1, i & 0xff);
  const BootMarker::Marks marks = marker.Snapshot();
  EXPECT_EQ(marks.first.size(), BootMarker::kMarks);
  EXPECT_EQ(marks.first.back().value, BootMarker::kMarks - 1);
  EXPECT_EQ(marks.last.value, 999 & 0xff);
  EXPECT_EQ(marks.count, 1000u);
}

TEST(BootMarkerTest, OnlyTheByteAtThePortOfAWideWriteIsAMark) {
  TrapBus bus;
  auto marker = std::make_shared<BootMarker>();
  ASSERT_TRUE(bus.Add(0x80, BootMarker::kPorts, marker));
  TrapBus::Cursor cursor(bus);
  const std::array<uint8_t, 4> data = {0x77, 1, 2, 3};
  cursor.Write(0x80, data.data(), 4);
  EXPECT_EQ(marker->Snapshot().count, 1u);
  EXPECT_EQ(marker->Read(0, 1), 0x77u);
}

TEST(BootMarkerTest, NoWriteIsLostBetweenSeveralVcpus) {
  BootMarker marker;
  const auto vcpu = [&] {
    for (int i = 0; i < 500; ++i) marker.Write(0, 1, 1);
  };
  std::thread first(vcpu);
  std::thread second(vcpu);
  first.join();
  second.join();
  EXPECT_EQ(marker.Snapshot().count, 1000u);
}

}  // namespace
}  // namespace crossbar
