#include "vmm/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/failpoint.h"
#include "memory/guest_ram.h"

namespace crossbar {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ReportFileTest : public ::testing::Test {
 protected:
  ReportFileTest() { fs::create_directory(folder_); }
  ~ReportFileTest() override {
    failpoints::Reset();
    fs::remove_all(folder_);
  }
  static std::string Content(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  long Files() const { return std::distance(fs::directory_iterator(folder_), {}); }

  const std::string folder_ = ::testing::TempDir() + "report_test." + std::to_string(::getpid());
  const std::string path_ = folder_ + "/report.json";
};

TEST_F(ReportFileTest, ExistsOnlyOnceItIsCommitted) {
  Result<ReportFile> report = ReportFile::Open(path_);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(Files(), 0);
  ASSERT_TRUE(report->Commit("text"));
  EXPECT_EQ(Files(), 1);
  EXPECT_EQ(Content(path_), "text");
}

TEST_F(ReportFileTest, ReplacesAnOlderOneAsAWhole) {
  std::ofstream(path_) << "a longer text of before";
  Result<ReportFile> report = ReportFile::Open(path_);
  ASSERT_TRUE(report);
  EXPECT_EQ(Content(path_), "a longer text of before");
  ASSERT_TRUE(report->Commit("new"));
  EXPECT_EQ(Content(path_), "new");
  EXPECT_EQ(Files(), 1);
}

TEST_F(ReportFileTest, ThatCannotBeWrittenIsAnErrorAtOnce) {
  const Result<ReportFile> report = ReportFile::Open(folder_ + "/missing/report.json");
  ASSERT_FALSE(report);
  EXPECT_THAT(report.error().ToString(), HasSubstr("cannot write the report"));
  EXPECT_THAT(report.error().hint(), HasSubstr("--report"));
  EXPECT_FALSE(ReportFile::Open(folder_)) << "a folder";
}

TEST_F(ReportFileTest, LeavesNothingWhereWritingFails) {
  Result<ReportFile> report = ReportFile::Open(path_);
  ASSERT_TRUE(report);
  ASSERT_TRUE(failpoints::Arm("write=ENOSPC"));
  const Result<> committed = report->Commit("text");
  ASSERT_FALSE(committed);
  EXPECT_THAT(committed.error().message(), HasSubstr(path_));
  EXPECT_EQ(Files(), 0);
}

TEST_F(ReportFileTest, WritesToWhatALinkLeadsToAndKeepsTheLink) {
  const std::string target = folder_ + "/target";
  std::ofstream(target) << "before ";
  ASSERT_EQ(::symlink(target.c_str(), path_.c_str()), 0);
  Result<ReportFile> report = ReportFile::Open(path_);
  ASSERT_TRUE(report);
  ASSERT_TRUE(report->Commit("text"));
  EXPECT_TRUE(fs::is_symlink(path_));
  EXPECT_EQ(Content(target), "before text") << "as /dev/stdout is written after the console";
}

TEST(ReportText, TakesNamesThatAreNoUtf8) {
  EXPECT_EQ(ReportText({{"id", "a\xff"}}), "{\n  \"id\": \"a\xef\xbf\xbd\"\n}\n");
}

TEST(MemoryOverhead, CountsOurMemoryAndNotTheGuests) {
  constexpr uint64_t kSize = 16 * kMiB;
  const std::array<GuestRange, 1> banks = {GuestRange{Gpa(0), kSize}};
  const Result<GuestRam> ram = GuestRam::Create(banks, PageSize::k4K);
  ASSERT_TRUE(ram);
  const uint64_t before = MemoryOverhead().value();
  ASSERT_TRUE(ram->Prefault(1, {}));
  const uint64_t with_guest = MemoryOverhead().value();
  EXPECT_LT(with_guest, before + kSize / 2);

  void* ours = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  ASSERT_NE(ours, MAP_FAILED);
  EXPECT_GE(MemoryOverhead().value(), with_guest + kSize);
  ::munmap(ours, kSize);
}

}  // namespace
}  // namespace crossbar
