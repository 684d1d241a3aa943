#include "memory/guest_ram.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/failpoint.h"

namespace crossbar {
namespace {

constexpr std::array kBanks = {GuestRange{Gpa(0), 4 * kMiB}, GuestRange{Gpa(k4GiB), 2 * kMiB}};

TEST(GuestRam, HoldsWhatIsWrittenAtEveryEdge) {
  const GuestRam ram = GuestRam::Create(kBanks).value();
  EXPECT_EQ(ram.size(), 6 * kMiB);
  for (const GuestRam::Bank& bank : ram.banks()) {
    for (const Gpa at : {bank.range.start, Gpa(bank.range.end().value() - sizeof(uint64_t))}) {
      const uint64_t written = at.value() ^ 0x5a5a;
      ASSERT_TRUE(ram.WriteObject(at, written));
      uint64_t read = 0;
      ASSERT_TRUE(ram.Read(at, std::as_writable_bytes(std::span(&read, 1))));
      EXPECT_EQ(read, written);
    }
  }
}

TEST(GuestRam, RefusesRangesThatLeaveABank) {
  const GuestRam ram = GuestRam::Create(kBanks).value();
  EXPECT_FALSE(ram.WriteObject(Gpa(4 * kMiB - 4), uint64_t{1}));
  EXPECT_FALSE(ram.At({Gpa(4 * kMiB), 1}));
  EXPECT_FALSE(ram.At({Gpa(0), ~0ull}));
  EXPECT_FALSE(ram.At({Gpa(~0ull), 2}));
}

TEST(GuestRam, CannotBeResizedByAnyone) {
  const GuestRam ram = GuestRam::Create(kBanks).value();
  const int fd = ram.banks()[0].memfd.get();
  EXPECT_EQ(::ftruncate(fd, 4096), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::ftruncate(fd, 64 << 20), -1);
}

TEST(GuestRam, PrefaultTouchesEveryPage) {
  const GuestRam ram = GuestRam::Create(kBanks).value();
  uint64_t last = 0;
  ASSERT_TRUE(ram.Prefault(2, [&](uint64_t done) { last = done; }));
  EXPECT_EQ(last, ram.size());
  for (const GuestRam::Bank& bank : ram.banks()) {
    const size_t pages = bank.range.size / kPageSize;
    std::vector<unsigned char> resident(pages);
    ASSERT_EQ(::mincore(bank.mapping.address().pointer(), bank.range.size, resident.data()), 0);
    for (size_t i = 0; i < pages; ++i) ASSERT_EQ(resident[i] & 1, 1) << i;
  }
}

TEST(GuestRam, PrefaultDoesWithFewerThreadsThanItWants) {
  for (const char* rule : {"pthread_create#1=EAGAIN", "pthread_create#2=EAGAIN"}) {
    const GuestRam ram = GuestRam::Create(kBanks).value();
    uint64_t last = 0;
    ASSERT_TRUE(failpoints::Arm(rule));
    ASSERT_TRUE(ram.Prefault(2, [&](uint64_t done) { last = done; }));
    EXPECT_EQ(failpoints::Fired(), 1u) << rule;
    failpoints::Reset();
    EXPECT_EQ(last, ram.size()) << rule;
  }
}

TEST(GuestRam, PrefaultThatFailsSaysSo) {
  const GuestRam ram = GuestRam::Create(kBanks).value();
  ASSERT_TRUE(failpoints::Arm("madvise=ENOMEM*1"));
  const Result<> prefaulted = ram.Prefault(2, {});
  failpoints::Reset();
  ASSERT_FALSE(prefaulted);
  EXPECT_NE(prefaulted.error().ToString().find("lower --memory"), std::string::npos);
}

TEST(GuestRam, TooFewHugePagesIsAnErrorThatSaysHowToGetThem) {
  constexpr std::array kHuge = {GuestRange{Gpa(0), 1ull << 50}};
  const Result<GuestRam> ram = GuestRam::Create(kHuge, PageSize::k2M);
  ASSERT_FALSE(ram);
  EXPECT_NE(ram.error().ToString().find("nr_hugepages"), std::string::npos)
      << ram.error().ToString();
}

TEST(GuestRam, RefusesBanksThatAreNoMultipleOfThePageSize) {
  constexpr std::array kOdd = {GuestRange{Gpa(0), 3 * kMiB}};
  EXPECT_TRUE(GuestRam::Create(kOdd));
  EXPECT_FALSE(GuestRam::Create(kOdd, PageSize::k2M));
}

TEST(GuestRam, WithoutABankThereIsNothingToPrefault) {
  const auto ram = GuestRam::Create({});
  ASSERT_TRUE(ram) << ram.error().ToString();
  EXPECT_TRUE(ram->Prefault(4, nullptr));
}

}  // namespace
}  // namespace crossbar
