#include "vmm/host_memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

namespace crossbar {
namespace {

// A host made of files.
class HostMemory : public ::testing::Test {
 protected:
  HostMemory() {
    Put("proc/meminfo", "MemTotal:       8000000 kB\nMemFree:  100 kB\nMemAvailable:    4096 kB\n");
  }
  ~HostMemory() override { std::filesystem::remove_all(root_); }
  void Put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << text;
  }
  uint64_t Least() { return LeastMemoryLimit(root_).bytes; }
  const std::string root_ = fmt::format("{}host_memory_test.{}", ::testing::TempDir(), ::getpid());
};

TEST_F(HostMemory, IsWhatIsAvailable) {
  EXPECT_EQ(Least(), 4 * kMiB);
  Put("proc/self/cgroup", "0::/a\n");
  EXPECT_EQ(Least(), 4 * kMiB) << "a group without a limit of its own";
  EXPECT_STREQ(LeastMemoryLimit(root_).whose, "the host has available");
}

TEST_F(HostMemory, IsLimitedByTheGroupAndThoseAboveIt) {
  Put("proc/self/cgroup", "0::/a/b\n");
  Put("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(Least(), 4 * kMiB);
  Put("sys/fs/cgroup/a/memory.max", "2097152\n");
  EXPECT_EQ(Least(), 2 * kMiB);
  Put("sys/fs/cgroup/a/b/memory.max", "1048576\n");
  EXPECT_EQ(Least(), kMiB);
  EXPECT_STREQ(LeastMemoryLimit(root_).whose, "the control group of this process allows");
}

TEST_F(HostMemory, IsLimitedByTheRootOfAContainer) {
  Put("proc/self/cgroup", "0::/not/visible/here\n");
  Put("sys/fs/cgroup/memory.max", "1048576\n");
  EXPECT_EQ(Least(), kMiB);
}

TEST_F(HostMemory, IsLimitedByAGroupOfTheFirstVersion) {
  Put("proc/self/cgroup", "5:devices:/\n4:memory:/a\n0::/\n");
  Put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n");
  Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Least(), kMiB);
}

TEST_F(HostMemory, IsNotLimitedByWhatCannotBeRead) {
  std::filesystem::remove_all(root_);
  EXPECT_EQ(Least(), std::numeric_limits<uint64_t>::max());
}

TEST(HostMemoryTaken, AtTheStartWhereTheKernelPinsIt) {
  RunOptions options;
  EXPECT_FALSE(TakesAllAtStart(options));
  options.devices.push_back(ParseDeviceSpec("model=memory").value());
  options.devices.push_back(ParseDeviceSpec("socket=/s").value());
  EXPECT_FALSE(TakesAllAtStart(options));
  options.devices.push_back(ParseDeviceSpec("0000:01:00.0").value());
  EXPECT_TRUE(TakesAllAtStart(options));
  options.devices.clear();
  options.prefault = true;
  EXPECT_TRUE(TakesAllAtStart(options));
}

}  // namespace
}  // namespace crossbar
