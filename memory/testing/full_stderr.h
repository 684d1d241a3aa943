// FullStderr: a standard error that nobody reads. While it lives, whoever writes a line there waits for Drain.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <vector>

namespace crossbar::testing {

class FullStderr {
 public:
  FullStderr() {
    EXPECT_EQ(::pipe(ends_.data()), 0);
    filling_.assign(static_cast<size_t>(::fcntl(ends_[1], F_GETPIPE_SZ)), 'x');
    EXPECT_EQ(::write(ends_[1], filling_.data(), filling_.size()), static_cast<ssize_t>(filling_.size()));
    EXPECT_EQ(::dup2(ends_[1], STDERR_FILENO), STDERR_FILENO);
  }
  FullStderr(const FullStderr&) = delete;
  FullStderr& operator=(const FullStderr&) = delete;
  ~FullStderr() {
    ::dup2(before_, STDERR_FILENO);
    for (const int fd : {ends_[0], ends_[1], before_}) ::close(fd);
  }

  void Drain() { EXPECT_GT(::read(ends_[0], filling_.data(), filling_.size()), 0); }

 private:
  const int before_ = ::dup(STDERR_FILENO);
  std::array<int, 2> ends_{};
  std::vector<char> filling_;
};

}  // namespace crossbar::testing
