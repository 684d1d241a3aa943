// RecordingDomain: a DmaDomain as strict as its contract. Writes "dma+ A 0x1000", "dma- start A 0x1000"
// and "dma- done A 0x1000" into a Recorder; where it does not do as asked, "dma+ A 0x1000 refused" and
// "dma- failed", "dma- short", "dma- dead" or "dma- unrevoked" in place of "dma- done".
//
// It fails the test where it is called wrongly: an unmap of what is not mapped, a ticket awaited twice
// or never, a call after it said that it is dead, two calls at a time.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/locks.h"
#include "memory/dma_domain.h"
#include "memory/testing/recorder.h"
#include "memory/testing/recording_slots.h"

namespace crossbar::testing {

class RecordingDomain : public DmaDomain {
 public:
  enum class Answer : uint8_t { kDone, kShort, kFailed, kDead, kUnrevoked };

  RecordingDomain(Recorder& recorder, std::string name)
      : recorder_(recorder), name_(std::move(name)) {}
  ~RecordingDomain() override {
    EXPECT_TRUE(tickets_.empty()) << name_ << ": " << tickets_.size() << " tickets never awaited";
    EXPECT_TRUE(dead_ || mapped_.empty()) << name_ << ": " << mapped_.size() << " ranges left";
  }

  // --- How it behaves. To be set while no call is under way.

  std::string how = "mmap";
  // Why it refuses a backing; "" to map it.
  std::function<std::string(GuestRange, const Backing&)> refuse;
  // How an unmap ends whose deadline passes while this stalls.
  Answer late = Answer::kFailed;
  // Whether a dead server answers kDead to every unmap, as it should.
  bool dead_answers_dead = true;

  // How the next unmaps end, in the order in which they are awaited; then kDone.
  void AnswerUnmaps(std::vector<Answer> answers) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    answers_.assign(answers.begin(), answers.end());
  }
  // The server exits: maps fail, unmaps answer kDead.
  void Die() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    dead_ = true;
    mapped_.clear();
  }
  // From now on no unmap answers, until Resume or its deadline.
  void Stall() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    stalled_ = true;
  }
  void Resume() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    stalled_ = false;
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
  // Of the last await.
  Deadline last_deadline() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return last_deadline_;
  }
  // What a test left there on purpose.
  void Drop() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    mapped_.clear();
  }

  // --- DmaDomain

  std::string name() const override { return name_; }

  Result<std::string> Map(GuestRange range, const Backing& backing) override {
    const OneAtATime one(inside_);
    EXPECT_FALSE(known_dead_) << name_ << " is dead and was told to map";
    const Result<std::string> result = TryMap(range, backing);
    recorder_.Note(fmt::format("dma+ {} {}{}", name_, range.start, result ? "" : " refused"));
    return result;
  }

  bool alive() const override {
    MutexLock lock(mutex_);
    if (dead_) known_dead_ = true;
    return !dead_;
  }

  UnmapTicket StartUnmap(GuestRange range) override {
    const OneAtATime one(inside_);
    EXPECT_FALSE(known_dead_) << name_ << " is dead and was told to unmap";
    recorder_.Note(fmt::format("dma- start {} {}", name_, range.start));
    MutexLock lock(mutex_);
    const auto entry = mapped_.find(range.start);
    if (entry != mapped_.end() && entry->second.range == range) {
      EXPECT_FALSE(entry->second.leaving) << name_ << ": two unmaps of one range at once";
      entry->second.leaving = true;
    } else if (!dead_) {
      ADD_FAILURE() << name_ << " has not mapped " << fmt::format("{}", range);
    }
    tickets_.emplace(++last_ticket_, range);
    return last_ticket_;
  }

  Unmapped AwaitUnmap(UnmapTicket ticket, Deadline deadline) override {
    const OneAtATime one(inside_);
    const bool faulty = recorder_.Faulty("dma-");
    GuestRange range;
    Answer answer = Answer::kDone;
    {
      MutexLock lock(mutex_);
      const auto found = tickets_.find(ticket);
      if (found == tickets_.end()) {
        ADD_FAILURE() << name_ << ": ticket " << ticket << " is not to be awaited";
        return {Unmapped::State::kFailed, 0, Error::Of("no such ticket")};
      }
      range = found->second;
      tickets_.erase(found);
      last_deadline_ = deadline;
      answer = NextAnswer(WaitWhileStalled(deadline), faulty);
      Apply(range, answer);
    }
    recorder_.Note(fmt::format("dma- {} {} {}", Name(answer), name_, range.start));
    return Ending(answer, range);
  }

 private:
  struct Entry {
    GuestRange range;
    Backing backing;
    bool leaving = false;  // between StartUnmap and AwaitUnmap
    bool stuck = false;    // an unmap failed
  };

  Result<std::string> TryMap(GuestRange range, const Backing& backing) EXCLUDES(mutex_) {
    if (recorder_.Faulty("dma+")) return std::unexpected(Error(EIO, "injected"));
    const std::string reason = refuse ? refuse(range, backing) : "";
    MutexLock lock(mutex_);
    if (dead_) return Fail("the server exited");
    if (!reason.empty()) return std::unexpected(Error::Of("{}", reason));
    for (const auto& [start, entry] : mapped_) {
      if (!entry.range.Overlaps(range)) continue;
      EXPECT_TRUE(entry.stuck) << name_ << ": maps overlap at " << fmt::format("{}", range);
      return std::unexpected(Error(EEXIST, "something is mapped there"));
    }
    mapped_.emplace(range.start, Entry{range, backing});
    return how;
  }
  // False where the deadline passed.
  bool WaitWhileStalled(Deadline deadline) REQUIRES(mutex_) {
    waiting_ = stalled_;
    changed_.NotifyAll();
    bool in_time = true;
    while (stalled_ && in_time) in_time = changed_.WaitUntil(mutex_, deadline);
    waiting_ = false;
    return in_time;
  }
  Answer NextAnswer(bool in_time, bool faulty) REQUIRES(mutex_) {
    if (dead_ && dead_answers_dead) return Answer::kDead;
    if (!in_time) return late;
    if (faulty) return Answer::kFailed;
    if (answers_.empty()) return Answer::kDone;
    const Answer answer = answers_.front();
    answers_.pop_front();
    return answer;
  }
  void Apply(GuestRange range, Answer answer) REQUIRES(mutex_) {
    switch (answer) {
      case Answer::kDone:
      case Answer::kUnrevoked:
        mapped_.erase(range.start);
        break;
      case Answer::kDead:
        dead_ = known_dead_ = true;
        mapped_.clear();
        break;
      case Answer::kShort:
      case Answer::kFailed:
        if (const auto entry = mapped_.find(range.start); entry != mapped_.end()) {
          entry->second.leaving = false;
          entry->second.stuck = true;
        }
        break;
    }
  }
  static const char* Name(Answer answer) {
    switch (answer) {
      case Answer::kDone: return "done";
      case Answer::kShort: return "short";
      case Answer::kFailed: return "failed";
      case Answer::kDead: return "dead";
      case Answer::kUnrevoked: return "unrevoked";
    }
    return "?";
  }
  static Unmapped Ending(Answer answer, GuestRange range) {
    switch (answer) {
      case Answer::kDone: return {Unmapped::State::kDone, range.size, {}};
      case Answer::kShort: return {Unmapped::State::kDone, range.size - kPageSize, {}};
      case Answer::kFailed: return {Unmapped::State::kFailed, 0, Error(EIO, "injected")};
      case Answer::kDead: return {Unmapped::State::kDead, 0, {}};
      case Answer::kUnrevoked: return {Unmapped::State::kUnrevoked, 0, {}};
    }
    return {};
  }

  Recorder& recorder_;
  const std::string name_;
  std::atomic<int> inside_ = 0;
  mutable std::atomic<bool> known_dead_ = false;  // it said so

  mutable Mutex mutex_;
  CondVar changed_;
  bool dead_ GUARDED_BY(mutex_) = false;
  bool stalled_ GUARDED_BY(mutex_) = false;
  bool waiting_ GUARDED_BY(mutex_) = false;
  std::deque<Answer> answers_ GUARDED_BY(mutex_);
  std::map<Gpa, Entry> mapped_ GUARDED_BY(mutex_);
  std::map<UnmapTicket, GuestRange> tickets_ GUARDED_BY(mutex_);
  UnmapTicket last_ticket_ GUARDED_BY(mutex_) = 0;
  Deadline last_deadline_ GUARDED_BY(mutex_);
};

}  // namespace crossbar::testing
