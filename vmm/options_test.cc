#include "vmm/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace crossbar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Arguments = std::vector<std::string>;

// The error's text, or nothing where there is none.
std::string Refusal(const Arguments& arguments) {
  const Result<RunOptions> options = ParseRunOptions(arguments);
  return options ? "" : options.error().message();
}

class ConfigFile : public ::testing::Test {
 protected:
  ~ConfigFile() override { std::filesystem::remove(path_); }
  Arguments With(const std::string& text, Arguments more = {}) {
    std::ofstream(path_) << text;
    more.insert(more.end(), {"--config", path_});
    return more;
  }
  const std::string path_ = ::testing::TempDir() + "options_test.conf." + std::to_string(::getpid());
};

TEST(ParseSize, TakesSuffixesAndFractions) {
  EXPECT_EQ(ParseSize("1").value(), 1u);
  EXPECT_EQ(ParseSize("4096").value(), 4096u);
  EXPECT_EQ(ParseSize("2K").value(), 2 * kKiB);
  EXPECT_EQ(ParseSize("512M").value(), 512 * kMiB);
  EXPECT_EQ(ParseSize("512m").value(), 512 * kMiB);
  EXPECT_EQ(ParseSize("3.5G").value(), 3 * kGiB + 512 * kMiB);
  EXPECT_EQ(ParseSize("0.5k").value(), 512u);
  EXPECT_EQ(ParseSize("1T").value(), 1024 * kGiB);
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"", "0", "0M", "-1", "-1M", "abc", "M", "12X", "1MM", "1 M", " 1", "1e3", "0x10",
                           "nan", "inf", "-inf", "1,5G", "1.2.3", "0.0001K", "9999999999999T",
                           "18446744073709551616"}) {
    EXPECT_FALSE(ParseSize(text)) << "'" << text << "'";
  }
}

TEST(RunOptions, HaveDefaults) {
  const RunOptions options = ParseRunOptions({"--kernel", "k"}).value();
  EXPECT_EQ(options.kernel, "k");
  EXPECT_EQ(options.memory_bytes, 512 * kMiB);
  EXPECT_EQ(options.cpus, 1u);
  EXPECT_EQ(options.pages, PageSize::k4K);
  EXPECT_FALSE(options.prefault);
  EXPECT_EQ(options.console, "stdio");
  EXPECT_EQ(options.log_level, LogLevel::kWarning);
  EXPECT_TRUE(options.initrd.empty() && options.report.empty() && options.command_line.empty());
  EXPECT_TRUE(options.modules.empty() && options.failpoints.empty());
}

TEST(RunOptions, AreTakenFromTheCommandLine) {
  const RunOptions options =
      ParseRunOptions({"--kernel=k", "--initrd", "i", "--cmdline", "a=b c", "--memory", "2G", "--cpus", "4",
                       "--hugepages", "2M", "--prefault", "--console", "file:c", "--report", "r", "--log",
                       "debug", "--failpoint", "open=EIO", "--failpoint", "read=EIO"})
          .value();
  EXPECT_EQ(options.initrd, "i");
  EXPECT_EQ(options.command_line, "a=b c");
  EXPECT_EQ(options.memory_bytes, 2 * kGiB);
  EXPECT_EQ(options.cpus, 4u);
  EXPECT_EQ(options.pages, PageSize::k2M);
  EXPECT_TRUE(options.prefault);
  EXPECT_EQ(options.console, "file:c");
  EXPECT_EQ(options.report, "r");
  EXPECT_EQ(options.log_level, LogLevel::kDebug);
  EXPECT_THAT(options.failpoints, ElementsAre("open=EIO", "read=EIO"));
}

TEST(RunOptions, SplitAModuleAtItsFirstEqualsSign) {
  const RunOptions options =
      ParseRunOptions({"--kernel", "k", "--module", "a", "--module", "b=", "--module", "c=d=e f"}).value();
  ASSERT_EQ(options.modules.size(), 3u);
  EXPECT_EQ(options.modules[0].path, "a");
  EXPECT_EQ(options.modules[0].arguments, "");
  EXPECT_EQ(options.modules[1].path, "b");
  EXPECT_EQ(options.modules[2].path, "c");
  EXPECT_EQ(options.modules[2].arguments, "d=e f");
}

TEST(RunOptions, AreRefusedByName) {
  EXPECT_THAT(Refusal({}), HasSubstr("--kernel FILE is missing"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--cpus", "0"}), HasSubstr("--cpus: '0'"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--cpus", "4294967296"}), HasSubstr("--cpus"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--memory", "x"}), HasSubstr("--memory: 'x'"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--memory", "4097"}), HasSubstr("multiple of the page size"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--memory", "3M", "--hugepages", "2M"}), HasSubstr("2048 KiB"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--hugepages", "4K"}), HasSubstr("--hugepages: '4K'"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--console", "tty"}), HasSubstr("--console: 'tty'"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--console", "file:"}), HasSubstr("--console: 'file:'"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--report", ""}), HasSubstr("--report: the name of the file is empty"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--initrd", ""}), HasSubstr("--initrd: the name of the file is empty"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--hugepages", ""}), HasSubstr("--hugepages: ''"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--log", "loud"}), HasSubstr("--log: 'loud'"));
  EXPECT_THAT(Refusal({"--kernel", "k", "stray"}), HasSubstr("'stray' is no option"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--mem", "1G"}), HasSubstr("--mem"));
  EXPECT_THAT(Refusal({"--kernel", "k", "--kernel", "l"}), HasSubstr("--kernel"));
}

TEST(RunOptions, AskForHelpWithoutAKernel) {
  EXPECT_TRUE(ParseRunOptions({"--help"}).value().help);
  EXPECT_TRUE(ParseRunOptions({"-h"}).value().help);
  EXPECT_THAT(RunHelp(), HasSubstr("--kernel FILE"));
}

TEST_F(ConfigFile, FillsInWhatTheCommandLineLeavesOpen) {
  const RunOptions options =
      ParseRunOptions(With("# comment\nkernel = k\nmemory = 1G\ncpus=3\nprefault = true\nmodule = a\nmodule = b=c\n",
                           {"--memory", "2G"}))
          .value();
  EXPECT_EQ(options.kernel, "k");
  EXPECT_EQ(options.memory_bytes, 2 * kGiB);
  EXPECT_EQ(options.cpus, 3u);
  EXPECT_TRUE(options.prefault);
  ASSERT_EQ(options.modules.size(), 2u);
  EXPECT_EQ(options.modules[1].arguments, "c");
}

TEST_F(ConfigFile, TakesAValueAsItStands) {
  EXPECT_EQ(ParseRunOptions(With("kernel=k\n\t # none \n cmdline = a #b=c  \r\n")).value().command_line, "a #b=c");
}

TEST_F(ConfigFile, IsNamedWhereItsValueIsWrong) {
  EXPECT_EQ(Refusal(With("kernel = k\ncpus = 0\n")), path_ + ": --cpus: '0' is not a number from 1 up");
  EXPECT_EQ(Refusal(With("kernel = k\ncpus = 0\n", {"--cpus=x"})), "--cpus: 'x' is not a number from 1 up");
}

TEST_F(ConfigFile, IsRefusedByItsName) {
  for (const char* text : {"kernel = k\nbogus = 1\n", "kernel = k\nconfig = other\n", "kernel = k\nnonsense\n",
                           "kernel = k\nkernel = l\n", "kernel = k\nprefault = perhaps\n",
                           "kernel = k\n = 5\n", "kernel = k\nhelp = yes\n", "kernel = k\ninitrd =\n",
                           "kernel = k\nhugepages =\n"}) {
    EXPECT_THAT(Refusal(With(text)), HasSubstr(path_)) << text;
  }
  EXPECT_THAT(Refusal({"--config", path_ + ".missing"}), HasSubstr("No such file or directory"));
  EXPECT_THAT(Refusal({"--config", ::testing::TempDir()}), HasSubstr("Is a directory"));
  EXPECT_THAT(Refusal({"--config", "/dev/zero"}), HasSubstr("File too large"));
  EXPECT_THAT(Refusal(With("")), HasSubstr("--kernel FILE is missing"));
}

TEST_F(ConfigFile, IsQuotedInBrief) {
  const std::string refusal = Refusal(With(std::string(300'000, 'x')));
  EXPECT_THAT(refusal, HasSubstr("xxx...' is not NAME = VALUE"));
  EXPECT_LT(refusal.size(), 500u);
}

}  // namespace
}  // namespace crossbar
