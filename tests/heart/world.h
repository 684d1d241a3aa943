// What the fakes of the heart's property test share: one random generator, the trace of all their
// calls in order, and the plan of which of them fail.
//
// One thread. A fake never throws: it is called under AddressSpace's lock. What it finds wrong it
// adds to `violations`, and the session looks there after the operation.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "memory/address_space.h"

namespace crossbar::heart {

// xoshiro256**: the same numbers on every machine and with every standard library.
class Rng {
 public:
  explicit Rng(uint64_t seed);
  uint64_t Next();
  // Below `limit`, which is not 0.
  uint64_t Below(uint64_t limit) { return Next() % limit; }
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool OneIn(uint64_t n) { return Below(n) == 0; }
  bool Percent(unsigned percent) { return Below(100) < percent; }

 private:
  std::array<uint64_t, 4> state_;
};

uint64_t Mix(uint64_t a, uint64_t b);

// One call that AddressSpace made, and how it ended.
struct Event {
  enum class Kind : uint8_t {
    kSlotAdd,
    kSlotRemove,
    kIoAdd,
    kIoRemove,  // KVM
    kMap,
    kState,
    kStartUnmap,
    kAwaitUnmap,  // domain
    kUnsafe,
  };
  // kHung: a call that nobody answers in time. What becomes of the domain is its to say (kState).
  enum class Outcome : uint8_t { kOk, kFailed, kShort, kGone, kLost, kHung };

  explicit Event(Kind what, int domain_number = -1) : kind(what), domain(domain_number) {}

  Kind kind;
  Outcome outcome = Outcome::kOk;
  int domain;
  uint64_t id = 0;  // slot number or ticket
  GuestRange range;
  Hva host;
  bool read_only = false;
  Backing backing;  // kMap
  IoEvent io;
  std::string text;  // kMap: how, or why not
  uint64_t bytes = 0;  // kAwaitUnmap, kOk or kShort
  DmaDomain::Deadline deadline;  // kMap, kAwaitUnmap
  std::chrono::steady_clock::time_point time;

  std::string ToString() const;
};

// One call to fail: the n-th of its kind within an operation, and then each further one with the
// same target, `times` in all.
struct Fault {
  Event::Kind kind = Event::Kind::kUnsafe;
  Event::Outcome outcome = Event::Outcome::kFailed;
  unsigned nth = 0;
  unsigned times = 1;
  // What it hit.
  bool armed = false;
  int domain = -1;
  uint64_t key = 0;
};

struct World {
  explicit World(uint64_t seed) : rng(seed) {}

  void StartOperation(std::vector<Fault> plan);
  // How the call that is about to be recorded is to end.
  Event::Outcome Fate(Event::Kind kind, int domain, uint64_t key);
  void Record(Event event);
  void Violation(std::string what);

  Rng rng;
  std::vector<Event> trace;  // of this operation
  std::vector<Fault> faults;
  std::vector<std::string> violations;
  std::function<void(const Event&)> probe;  // called at each event
  uint64_t hash = 0;                        // of all events so far
  uint64_t events = 0;

 private:
  std::array<unsigned, 9> calls_ = {};
};

bool SameBacking(const Backing& a, const Backing& b);
bool SameEvent(const IoEvent& a, const IoEvent& b);
std::string Describe(const IoEvent& event);
std::string Describe(const Backing& backing);

}  // namespace crossbar::heart
