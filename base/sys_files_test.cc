#include "base/sys_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

namespace crossbar {
namespace {

TEST(SysFiles, ReadWhatIsThereAndSayWhatIsNot) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / fmt::format("sys_files.{}", ::getpid());
  std::filesystem::create_directory(folder);
  std::ofstream(folder / "text") << "one\ntwo\n";
  std::filesystem::create_symlink("text", folder / "link");
  EXPECT_EQ(sys::ReadText(folder / "text").value(), "one\ntwo\n");
  EXPECT_EQ(sys::ReadLink(folder / "link").value(), "text");
  EXPECT_EQ(std::filesystem::path(sys::RealPath(folder / "link").value()).filename(), "text");
  EXPECT_THAT(sys::ListFolder(folder).value(), ::testing::ElementsAre("link", "text"));
  std::filesystem::remove_all(folder);
  for (const auto& error :
       {sys::ReadText(folder / "text").error(), sys::ReadLink(folder / "link").error(),
        sys::RealPath(folder).error(), sys::ListFolder(folder).error()}) {
    EXPECT_EQ(error.code(), ENOENT);
    EXPECT_THAT(error.message(), ::testing::HasSubstr(folder.string()));
  }
}

}  // namespace
}  // namespace crossbar
