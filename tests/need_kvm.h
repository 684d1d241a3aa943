// NEED_KVM(): the first line of a test that boots guests. Where /dev/kvm cannot be opened the test is
// skipped, saying why; where CROSSBAR_REQUIRE_KVM is set (scripts/test --ci) it fails instead.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

namespace crossbar::testing {

// Empty where /dev/kvm can be used.
inline std::string KvmTrouble() {
  const int fd = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (fd < 0) return std::string("cannot open /dev/kvm: ") + std::strerror(errno);
  ::close(fd);
  return {};
}

}  // namespace crossbar::testing

#define NEED_KVM()                                                             \
  if (const std::string trouble = ::crossbar::testing::KvmTrouble(); !trouble.empty()) { \
    if (std::getenv("CROSSBAR_REQUIRE_KVM") != nullptr) FAIL() << trouble;     \
    GTEST_SKIP() << trouble;                                                   \
  }                                                                            \
  static_assert(true, "a semicolon follows")
