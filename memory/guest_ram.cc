#include "memory/guest_ram.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "base/check.h"
#include "base/locks.h"
#include "base/log.h"
#include "base/sys.h"
#include "base/thread.h"

namespace crossbar {
namespace {

// What one prefault thread takes at a time: small enough to spread well and to show progress.
constexpr uint64_t kPrefaultChunk = 32 * kMiB;
constexpr auto kProgressInterval = std::chrono::milliseconds(50);

unsigned MemfdFlags(PageSize pages) {
  switch (pages) {
    case PageSize::k4K:
      return MFD_ALLOW_SEALING;
    case PageSize::k2M:
      return MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB;
    case PageSize::k1G:
      return MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_1GB;
  }
  return 0;
}

std::string HugePagePath(PageSize pages, const char* file) {
  return fmt::format("/sys/kernel/mm/hugepages/hugepages-{}kB/{}",
                     static_cast<uint64_t>(pages) / kKiB, file);
}

// 0 where the kernel has no huge pages of the size.
uint64_t HugePageCount(PageSize pages, const char* file) {
  const Result<std::string> text = sys::ReadFile(HugePagePath(pages, file));
  uint64_t count = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), count);
  return count;
}

// For RAM of `size` in all, once what there is of it has been given back.
Error HugePageError(Error error, PageSize pages, uint64_t size) {
  const uint64_t page = static_cast<uint64_t>(pages);
  const uint64_t needed = size / page;
  const uint64_t free = HugePageCount(pages, "free_hugepages");
  // Free, but promised to others.
  const uint64_t usable = free - std::min(free, HugePageCount(pages, "resv_hugepages"));
  // What is written is the size of the whole pool, others' pages included.
  const uint64_t missing = needed - std::min(needed, usable);
  return std::move(error)
      .Within(fmt::format("RAM needs {} huge pages of {} MiB and {} are free", needed,
                          page / kMiB, usable))
      .WithHint(fmt::format("reserve more: echo {} > {}",
                            HugePageCount(pages, "nr_hugepages") + missing,
                            HugePagePath(pages, "nr_hugepages")));
}

Result<GuestRam::Bank> MakeBank(GuestRange range, PageSize pages) {
  GuestRam::Bank bank;
  bank.range = range;
  const auto alignment = std::max(static_cast<uint64_t>(pages), 2 * kMiB);
  const auto make = [&]() -> Result<> {
    bank.memfd = TRY(sys::MemfdCreate("guest-ram", MemfdFlags(pages)));
    TRY(sys::Ftruncate(bank.memfd.get(), range.size));
    // Hugetlbfs reserves its pages here, so that a shortage shows now and not as a SIGBUS later.
    bank.mapping =
        TRY(HostMapping::Map(bank.memfd.get(), 0, range.size, PROT_READ | PROT_WRITE, alignment));
    return {};
  };
  TRY(make());
  // The size is part of what devices and servers are given: nobody may change it any more.
  TRY(sys::AddSeals(bank.memfd.get(), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
  // A child made by fork would turn pinned pages into copy-on-write pages under DMA.
  TRY(sys::Madvise(bank.mapping.address().pointer(), range.size, MADV_DONTFORK));
  // Fewer faults and shorter page walks, where the host's shmem_enabled is `advise`. A host that
  // has no such pages says so, and the guest runs with small ones.
  if (pages == PageSize::k4K) {
    if (const auto advised =
            sys::Madvise(bank.mapping.address().pointer(), range.size, MADV_HUGEPAGE);
        !advised)
      LogDebug("guest RAM has small pages: {}", advised.error().message());
  }
  return bank;
}

uint64_t TotalSize(std::span<const GuestRange> banks) {
  uint64_t total = 0;
  for (const GuestRange& bank : banks) total += bank.size;
  return total;
}

}  // namespace

Result<GuestRam> GuestRam::Create(std::span<const GuestRange> banks, PageSize pages) {
  GuestRam ram;
  ram.page_size_ = pages;
  const uint64_t page = static_cast<uint64_t>(pages);
  for (const GuestRange& range : banks) {
    CHECK(ram.banks_.empty() || ram.banks_.back().range.last() < range.start, "banks out of order");
    if (range.empty() || !IsAligned(range.start.value(), page) || !IsAligned(range.size, page))
      return Fail("RAM {} is not a multiple of the page size, {:#x}", range, page);
    Result<Bank> bank = Within(MakeBank(range, pages), [&] {
      return fmt::format("cannot get {} MiB of guest RAM", range.size / kMiB);
    });
    if (!bank && pages != PageSize::k4K) {
      ram.banks_.clear();
      return std::unexpected(HugePageError(std::move(bank).error(), pages, TotalSize(banks)));
    }
    if (!bank && bank.error().code() == EFBIG)
      return std::unexpected(std::move(bank).error().WithHint("raise the limit on files (ulimit -f)"));
    ram.banks_.push_back(TRY(std::move(bank)));
  }
  return ram;
}

uint64_t GuestRam::size() const {
  uint64_t total = 0;
  for (const Bank& bank : banks_) total += bank.range.size;
  return total;
}

Result<> GuestRam::Prefault(unsigned threads,
                            const std::function<void(uint64_t done)>& progress) const {
  std::vector<std::span<std::byte>> chunks;
  const uint64_t step = std::max(kPrefaultChunk, static_cast<uint64_t>(page_size_));
  for (const Bank& bank : banks_) {
    for (uint64_t at = 0; at < bank.range.size; at += step)
      chunks.push_back(bank.mapping.bytes().subspan(at, std::min(step, bank.range.size - at)));
  }

  if (chunks.empty()) return {};

  std::atomic<size_t> next = 0;
  std::atomic<uint64_t> done = 0;
  Mutex mutex;
  CondVar changed;
  const size_t wanted = std::clamp<size_t>(threads, 1, chunks.size());
  size_t running = wanted;  // under mutex, as is outcome
  Result<> outcome;         // the first failure
  const auto work = [&] {
    for (size_t i = next++; i < chunks.size(); i = next++) {
      const Result<> populated =
          sys::Madvise(chunks[i].data(), chunks[i].size(), MADV_POPULATE_WRITE);
      done += chunks[i].size();
      if (populated) continue;
      MutexLock lock(mutex);
      if (outcome) outcome = populated;
      next = chunks.size();
    }
    MutexLock lock(mutex);
    --running;
    changed.NotifyAll();
  };

  std::vector<std::thread> workers;
  workers.reserve(wanted);
  while (workers.size() < wanted) {
    Result<std::thread> worker = StartThread("prefault", work);
    if (!worker) break;  // by the limits; fewer threads do it too
    workers.push_back(*std::move(worker));
  }
  if (workers.size() < wanted) {
    MutexLock lock(mutex);
    running -= wanted - workers.size();
  }
  if (workers.empty()) {
    ++running;
    work();
  }
  {
    MutexLock lock(mutex);
    while (running != 0) {
      changed.WaitUntil(mutex, std::chrono::steady_clock::now() + kProgressInterval);
      if (progress) progress(done);
    }
  }
  for (std::thread& worker : workers) worker.join();
  if (progress) progress(done);  // they may have been done before the first wait
  if (!outcome) {
    return std::unexpected(std::move(outcome)
                               .error()
                               .Within("cannot touch all of guest RAM")
                               .WithHint("the host has too little free memory: lower --memory"));
  }
  return {};
}

Result<std::span<std::byte>> GuestRam::At(GuestRange range) const {
  for (const Bank& bank : banks_) {
    if (bank.range.Contains(range))
      return bank.mapping.bytes().subspan(range.start - bank.range.start, range.size);
  }
  return Fail("guest range {} is not within RAM", range);
}

Result<> GuestRam::Write(Gpa address, std::span<const std::byte> data) const {
  if (data.empty()) return {};
  const std::span<std::byte> target = TRY(At({address, data.size()}));
  std::memcpy(target.data(), data.data(), data.size());
  return {};
}

Result<> GuestRam::Read(Gpa address, std::span<std::byte> data) const {
  if (data.empty()) return {};
  const std::span<std::byte> source = TRY(At({address, data.size()}));
  std::memcpy(data.data(), source.data(), data.size());
  return {};
}

}  // namespace crossbar
