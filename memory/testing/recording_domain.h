// RecordingDomain: a DmaDomain as strict as its contract. Writes "dma+ A 0x1000", "dma- start A
// 0x1000" and "dma- done A 0x1000" into a Recorder; where it does not do as asked, "dma+ A 0x1000
// refused" and "dma- failed", "dma- short", "dma- gone" or "dma- lost" in place of "dma- done".
//
// It fails the test where it is called wrongly: an unmap of what is not mapped, a ticket awaited
// twice or never, a call after it said that it has ended, two calls at a time.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/locks.h"
#include "memory/dma_domain.h"
#include "memory/testing/recorder.h"
#include "memory/testing/recording_slots.h"

namespace crossbar::testing {

class RecordingDomain : public DmaDomain {
 public:
  enum class Answer : uint8_t { kDone, kShort, kFailed, kGone, kLost };

  RecordingDomain(Recorder& recorder, std::string name)
      : recorder_(recorder), name_(std::move(name)) {}
  ~RecordingDomain() override {
    EXPECT_TRUE(tickets_.empty()) << name_ << ": " << tickets_.size() << " tickets never awaited";
    EXPECT_TRUE(state_ != State::kServing || mapped_.empty())
        << name_ << ": " << mapped_.size() << " ranges left";
  }

  // --- How it behaves. To be set while no call is under way.

  std::string how = "mmap";
  // Why it refuses a backing; "" to map it.
  std::function<std::string(GuestRange, const Backing&)> refuse;
  // Why its devices reach a BAR's backing past it; "" where they do not.
  std::function<std::string(const Backing&)> unguarded;
  // How an unmap ends that was not answered by its deadline, and what becomes of the domain where a
  // map was not.
  Answer late = Answer::kFailed;
  // How long after StartUnmap an unmap is answered.
  std::chrono::milliseconds reply_time{0};
  // Whether a domain that has ended says so at every unmap, as it should.
  bool ended_says_so = true;

  // How the next unmaps end, in the order in which they are awaited; then kDone.
  void AnswerUnmaps(std::vector<Answer> answers) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    answers_.assign(answers.begin(), answers.end());
  }
  // The server exits: maps fail, unmaps end so, no DMA any more.
  void Die() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    EndAs(State::kGone);
  }
  // From now on no unmap is answered, until Resume or its deadline; or no map.
  void Stall() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    stalled_ = true;
  }
  void StallMaps() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    maps_stalled_ = true;
  }
  void Resume() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    stalled_ = maps_stalled_ = false;
    changed_.NotifyAll();
  }
  void WaitUntilStalled() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (!waiting_) changed_.Wait(mutex_);
  }

  // --- What it has.

  std::vector<GuestRange> Mapped() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    std::vector<GuestRange> ranges;
    for (const auto& [start, entry] : mapped_) ranges.push_back(entry.range);
    return ranges;
  }
  // A device's DMA: `reach` runs if `address` is mapped, and no unmap is done meanwhile.
  template <typename Reach>
  bool Dma(Gpa address, Reach&& reach) const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    auto it = mapped_.upper_bound(address);
    if (it == mapped_.begin() || !std::prev(it)->second.range.Contains(address)) return false;
    reach(std::prev(it)->second.backing.At(address - std::prev(it)->first));
    return true;
  }
  // Of the last await, and of the last map.
  Deadline last_deadline() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return last_deadline_;
  }
  Deadline last_map_deadline() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return last_map_deadline_;
  }
  // What a test left there on purpose.
  void Drop() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    mapped_.clear();
  }

  // --- DmaDomain

  std::string name() const override { return name_; }
  std::string Unguarded(const Backing& backing) const override {
    return unguarded ? unguarded(backing) : std::string();
  }

  Result<std::string> Map(GuestRange range, const Backing& backing, Deadline deadline) override {
    const OneAtATime one(inside_);
    EXPECT_FALSE(known_ended_) << name_ << " has ended and was told to map";
    const Result<std::string> result = TryMap(range, backing, deadline);
    recorder_.Note(fmt::format("dma+ {} {}{}", name_, range.start, result ? "" : " refused"));
    return result;
  }

  State state() const override {
    MutexLock lock(mutex_);
    if (state_ != State::kServing) known_ended_ = true;
    return state_;
  }

  UnmapTicket StartUnmap(GuestRange range) override {
    const OneAtATime one(inside_);
    EXPECT_FALSE(known_ended_) << name_ << " has ended and was told to unmap";
    recorder_.Note(fmt::format("dma- start {} {}", name_, range.start));
    MutexLock lock(mutex_);
    const auto entry = mapped_.find(range.start);
    if (entry != mapped_.end() && entry->second.range == range) {
      EXPECT_FALSE(entry->second.leaving) << name_ << ": two unmaps of one range at once";
      entry->second.leaving = true;
    } else if (state_ == State::kServing) {
      ADD_FAILURE() << name_ << " has not mapped " << fmt::format("{}", range);
    }
    tickets_.emplace(++last_ticket_, Ticket{range, std::chrono::steady_clock::now() + reply_time});
    return last_ticket_;
  }

  Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) override {
    const OneAtATime one(inside_);
    const bool faulty = recorder_.Faulty("dma-");
    Ticket awaited;
    Answer answer = Answer::kDone;
    Unmapped result;
    {
      MutexLock lock(mutex_);
      const auto found = tickets_.find(ticket);
      if (found == tickets_.end()) {
        ADD_FAILURE() << name_ << ": ticket " << ticket << " is not to be awaited";
        return {Unmapped::State::kFailed, 0, Error::Of("no such ticket")};
      }
      awaited = found->second;
      tickets_.erase(found);
      last_deadline_ = deadline;
      answer = NextAnswer(WaitForReply(awaited.reply, deadline), faulty);
      result = Apply(awaited.range, answer);
    }
    recorder_.Note(fmt::format("dma- {} {} {}", Name(answer), name_, awaited.range.start));
    return result;
  }

 private:
  struct Entry {
    GuestRange range;
    Backing backing;
    bool leaving = false;  // between StartUnmap and AwaitUnmap
    bool stuck = false;    // an unmap failed
    uint64_t left = 0;     // bytes that are still mapped
  };
  struct Ticket {
    GuestRange range;
    Deadline reply;
  };

  Result<std::string> TryMap(GuestRange range, const Backing& backing, Deadline deadline)
      EXCLUDES(mutex_) {
    if (recorder_.Faulty("dma+")) return std::unexpected(Error(EIO, "injected"));
    const std::string reason = refuse ? refuse(range, backing) : "";
    MutexLock lock(mutex_);
    last_map_deadline_ = deadline;
    if (!WaitWhile(maps_stalled_, deadline)) {
      // It has it or not, nobody knows: what it does not unmap any more it may use.
      mapped_.emplace(range.start, Entry{range, backing, false, false, range.size});
      EndAs(late == Answer::kLost ? State::kLost : State::kGone);
      return Fail("no answer in time");
    }
    if (state_ != State::kServing) return Fail("the server exited");
    if (!reason.empty()) return std::unexpected(Error::Of("{}", reason));
    for (const auto& [start, entry] : mapped_) {
      if (!entry.range.Overlaps(range)) continue;
      EXPECT_TRUE(entry.stuck) << name_ << ": maps overlap at " << fmt::format("{}", range);
      return std::unexpected(Error(EEXIST, "something is mapped there"));
    }
    mapped_.emplace(range.start, Entry{range, backing, false, false, range.size});
    return how;
  }
  void EndAs(State state) REQUIRES(mutex_) {
    if (state_ == State::kServing) state_ = state;
    if (state_ == State::kGone) mapped_.clear();
    changed_.NotifyAll();
  }
  // False where the deadline passed. The end of the domain answers all.
  bool WaitWhile(const bool& stalled, Deadline deadline) REQUIRES(mutex_) {
    waiting_ = stalled;
    changed_.NotifyAll();
    bool in_time = true;
    while (stalled && in_time && state_ == State::kServing)
      in_time = changed_.WaitUntil(mutex_, deadline);
    waiting_ = false;
    return in_time;
  }
  // A reply that is there counts, although the deadline has passed.
  bool WaitForReply(Deadline reply, Deadline deadline) REQUIRES(mutex_) {
    if (!WaitWhile(stalled_, deadline)) return false;
    while (std::chrono::steady_clock::now() < reply) {
      if (!changed_.WaitUntil(mutex_, std::min(reply, deadline)) && reply > deadline) return false;
    }
    return true;
  }
  Answer NextAnswer(bool in_time, bool faulty) REQUIRES(mutex_) {
    if (state_ != State::kServing && ended_says_so)
      return state_ == State::kGone ? Answer::kGone : Answer::kLost;
    if (!in_time) return late;
    if (faulty) return Answer::kFailed;
    if (answers_.empty()) return Answer::kDone;
    const Answer answer = answers_.front();
    answers_.pop_front();
    return answer;
  }
  Unmapped Apply(GuestRange range, Answer answer) REQUIRES(mutex_) {
    const auto entry = mapped_.find(range.start);
    const bool there = entry != mapped_.end();
    switch (answer) {
      case Answer::kDone: {
        const uint64_t bytes = there ? entry->second.left : 0;
        mapped_.erase(range.start);
        return {Unmapped::State::kDone, bytes, {}};
      }
      case Answer::kGone:
      case Answer::kLost:
        EndAs(answer == Answer::kGone ? State::kGone : State::kLost);
        return {Unmapped::State::kEnded, 0, {}};
      case Answer::kShort:
      case Answer::kFailed: {
        uint64_t bytes = 0;
        if (there) {
          entry->second.leaving = false;
          entry->second.stuck = true;
          // All but the last page.
          if (answer == Answer::kShort) {
            bytes = entry->second.left - kPageSize;
            entry->second.left = kPageSize;
          }
        }
        if (answer == Answer::kShort) return {Unmapped::State::kDone, bytes, {}};
        return {Unmapped::State::kFailed, 0, Error(EIO, "injected")};
      }
    }
    return {};
  }
  static const char* Name(Answer answer) {
    switch (answer) {
      case Answer::kDone: return "done";
      case Answer::kShort: return "short";
      case Answer::kFailed: return "failed";
      case Answer::kGone: return "gone";
      case Answer::kLost: return "lost";
    }
    return "?";
  }

  Recorder& recorder_;
  const std::string name_;
  std::atomic<int> inside_ = 0;
  mutable std::atomic<bool> known_ended_ = false;  // it said so

  mutable Mutex mutex_;
  CondVar changed_;
  State state_ GUARDED_BY(mutex_) = State::kServing;
  bool stalled_ GUARDED_BY(mutex_) = false;
  bool maps_stalled_ GUARDED_BY(mutex_) = false;
  bool waiting_ GUARDED_BY(mutex_) = false;
  std::deque<Answer> answers_ GUARDED_BY(mutex_);
  std::map<Gpa, Entry> mapped_ GUARDED_BY(mutex_);
  std::map<UnmapTicket, Ticket> tickets_ GUARDED_BY(mutex_);
  UnmapTicket last_ticket_ GUARDED_BY(mutex_) = 0;
  Deadline last_deadline_ GUARDED_BY(mutex_);
  Deadline last_map_deadline_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::testing
