// RecordingSlots: a MemslotTable as strict as KVM. Writes "slot+ 0x1000", "slot- 0x1000",
// "event+ 0x1000" and "event- 0x1000" into a Recorder; a call that fails ends in " failed".
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <string>
#include <vector>

#include "base/locks.h"
#include "memory/memslot_table.h"
#include "memory/testing/recorder.h"

namespace crossbar::testing {

// Fails the test where a fake is entered twice at once: AddressSpace promises one call at a time.
class OneAtATime {
 public:
  explicit OneAtATime(std::atomic<int>& inside) : inside_(inside) {
    EXPECT_EQ(inside_.fetch_add(1), 0) << "two calls at a time";
  }
  OneAtATime(const OneAtATime&) = delete;
  OneAtATime& operator=(const OneAtATime&) = delete;
  ~OneAtATime() { inside_.fetch_sub(1); }

 private:
  std::atomic<int>& inside_;
};

class RecordingSlots : public MemslotTable {
 public:
  explicit RecordingSlots(Recorder& recorder) : recorder_(recorder) {}
  ~RecordingSlots() override {
    EXPECT_TRUE(slots_.empty()) << slots_.size() << " memslots are left";
    EXPECT_TRUE(events_.empty()) << events_.size() << " ioeventfds are left";
  }

  // More slots than this are ENOSPC.
  uint32_t limit = 32764;

  Result<uint32_t> Add(GuestRange range, Hva host, bool read_only) override {
    const OneAtATime one(inside_);
    EXPECT_NE(host, Hva()) << "a memslot needs memory";
    const Result<uint32_t> number = TryAdd({0, range, host, read_only});
    Note("slot+", range.start, number.has_value());
    return number;
  }

  Result<> Remove(uint32_t number) override {
    const OneAtATime one(inside_);
    const bool faulty = recorder_.Faulty("slot-");
    Gpa start;
    {
      MutexLock lock(mutex_);
      const auto slot = slots_.find(number);
      if (slot == slots_.end()) {
        ADD_FAILURE() << "there is no memslot " << number;
        return Failed(EINVAL);
      }
      start = slot->second.range.start;
      if (!faulty) slots_.erase(slot);
    }
    Note("slot-", start, !faulty);
    if (faulty) return Failed(EIO);
    return {};
  }

  Result<> AddIoEvent(const IoEvent& event) override {
    const OneAtATime one(inside_);
    int error = recorder_.Faulty("event+") ? EIO : 0;
    {
      MutexLock lock(mutex_);
      if (error == 0 && FindEvent(event) != events_.end()) error = EEXIST;
      if (error == 0) events_.push_back(event);
    }
    Note("event+", event.address, error == 0);
    if (error != 0) return Failed(error);
    return {};
  }

  Result<> RemoveIoEvent(const IoEvent& event) override {
    const OneAtATime one(inside_);
    const bool faulty = recorder_.Faulty("event-");
    {
      MutexLock lock(mutex_);
      const auto found = FindEvent(event);
      if (found == events_.end()) {
        ADD_FAILURE() << "there is no ioeventfd at " << fmt::format("{}", event.address);
        return Failed(ENOENT);
      }
      if (!faulty) events_.erase(found);
    }
    Note("event-", event.address, !faulty);
    if (faulty) return Failed(EIO);
    return {};
  }

  std::vector<Memslot> Slots() const override {
    MutexLock lock(mutex_);
    std::vector<Memslot> slots;
    for (const auto& [number, slot] : slots_) slots.push_back(slot);
    return slots;
  }
  std::vector<Gpa> EventAddresses() const {
    MutexLock lock(mutex_);
    std::vector<Gpa> addresses;
    for (const IoEvent& event : events_) addresses.push_back(event.address);
    return addresses;
  }

  // A vCPU's access: `reach` runs if a memslot holds `address`, and no removal returns meanwhile.
  template <typename Reach>
  bool GuestAccess(Gpa address, Reach&& reach) const {
    MutexLock lock(mutex_);
    for (const auto& [number, slot] : slots_) {
      if (!slot.range.Contains(address)) continue;
      reach(slot);
      return true;
    }
    return false;
  }

  // What a test left there on purpose.
  void Drop() {
    MutexLock lock(mutex_);
    slots_.clear();
    events_.clear();
  }

 private:
  static std::unexpected<Error> Failed(int code) {
    return std::unexpected(Error(code, code == EIO ? "injected" : "refused by the fake KVM"));
  }
  Result<uint32_t> TryAdd(Memslot slot) {
    if (recorder_.Faulty("slot+")) return Failed(EIO);
    MutexLock lock(mutex_);
    for (const auto& [number, other] : slots_) {
      if (other.range.Overlaps(slot.range)) return Failed(EEXIST);
    }
    if (slots_.size() >= limit) return Failed(ENOSPC);
    while (slots_.contains(slot.number)) ++slot.number;
    slots_.emplace(slot.number, slot);
    return slot.number;
  }
  std::vector<IoEvent>::iterator FindEvent(const IoEvent& event) REQUIRES(mutex_) {
    return std::ranges::find_if(events_, [&](const IoEvent& other) {
      return other.address == event.address && other.size == event.size &&
             other.datamatch == event.datamatch;
    });
  }
  void Note(std::string_view what, Gpa at, bool ok) {
    recorder_.Note(fmt::format("{} {}{}", what, at, ok ? "" : " failed"));
  }

  Recorder& recorder_;
  std::atomic<int> inside_ = 0;
  mutable Mutex mutex_;
  std::map<uint32_t, Memslot> slots_ GUARDED_BY(mutex_);
  std::vector<IoEvent> events_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::testing
