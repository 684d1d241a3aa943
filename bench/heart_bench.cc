// Heart: what AddressSpace itself costs, over a memslot table and DMA domains that cost nothing.
//
// Map, zap and lookup by number of live ranges, map, zap and replay by number of domains too.
// Counters give the exact calls of each operation: slot_calls, event_calls (ioeventfds), domain_calls
// (maps, or unmaps started) and awaits.
//
// Gates: the calls of each operation are those of its own pieces, whatever else is placed; the time
// of a zap does not grow with other ranges, and that of a lookup at most logarithmically. The
// bounds on time leave room for cache misses; a walk over all ranges would be at 100 (lookup) or
// more (zap). Lookups are gated by number of domains too, on which they do not depend.
#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "bench/harness.h"
#include "memory/address_space.h"

namespace crossbar::bench {
namespace {

constexpr uint64_t kSize = 2 * kMiB;
constexpr uint64_t kStride = 4 * kMiB;  // so that there is room after each range
constexpr Gpa kFirst(4 * kGiB);
constexpr uintptr_t kFirstHost = 0x1000'0000'0000;
constexpr int64_t kRanges[] = {1, 10, 100, 1000, 10000};
constexpr int64_t kDomains[] = {1, 8, 64};
constexpr int kRepetitions = 9;
// How many of the ranges the gated lookups hit: few enough for the path to each to stay in the
// cache, so that the growth is the algorithm's. Those that hit all of them show what cache misses
// add.
constexpr int64_t kTouched = 50;
// 10 000 ranges beside 100 (lookup: the logarithm doubles) or beside 1 (zap: independent).
constexpr double kLookupGrowth = 4;
constexpr double kZapGrowth = 2;
constexpr double kLookupGrowthByDomains = 1.5;  // 64 beside 1

struct Calls {
  uint64_t slots = 0;
  uint64_t events = 0;
  uint64_t domains = 0;
  uint64_t awaits = 0;
};

class CountingSlots : public MemslotTable {
 public:
  explicit CountingSlots(Calls& calls) : calls_(calls) {}
  Result<uint32_t> Add(GuestRange, Hva, bool) override {
    ++calls_.slots;
    return next_++;
  }
  Result<> Remove(uint32_t) override {
    ++calls_.slots;
    return {};
  }
  Result<> AddIoEvent(const IoEvent&) override {
    ++calls_.events;
    return {};
  }
  Result<> RemoveIoEvent(const IoEvent&) override {
    ++calls_.events;
    return {};
  }
  std::vector<Memslot> Slots() const override { return {}; }

 private:
  Calls& calls_;
  uint32_t next_ = 0;
};

class CountingDomain : public DmaDomain {
 public:
  explicit CountingDomain(Calls& calls) : calls_(calls) {}
  std::string name() const override { return "counting"; }
  Result<std::string> Map(GuestRange, const Backing&, Deadline) override {
    ++calls_.domains;
    return "counted";
  }
  State state() const override { return State::kServing; }
  UnmapTicket StartUnmap(GuestRange range) override {
    ++calls_.domains;
    return range.size;
  }
  Unmapped AwaitUnmap(UnmapTicket ticket, Deadline) override {
    ++calls_.awaits;
    return {Unmapped::State::kDone, ticket, {}};
  }

 private:
  Calls& calls_;
};

// An address space with so many live ranges, each in so many domains.
class World {
 public:
  World(int64_t ranges, int64_t domains) : ranges_(ranges), domain_count_(domains) {
    for (int64_t i = 0; i < domains; ++i) {
      domains_.push_back(std::make_unique<CountingDomain>(calls));
      handles_.push_back(space.AddDomain(*domains_.back()).value());
    }
    for (int64_t i = 0; i < ranges; ++i) mappings_.push_back(space.Map(At(i, 0)).value());
  }

  bool Is(int64_t ranges, int64_t domains) const {
    return ranges_ == ranges && domain_count_ == domains;
  }
  int64_t AnyIndex() { return std::uniform_int_distribution<int64_t>(0, ranges_ - 1)(random_); }
  // A placement in the room behind one of the live ranges, with an ioeventfd: always the same, so that
  // the path to it stays in the cache.
  AddressSpace::Placement Free() {
    AddressSpace::Placement placement = At(ranges_ / 2, kSize);
    placement.events.push_back({placement.pieces[0].range.start, 4, {}, -1});
    return placement;
  }
  // Within one of `touched` of the live ranges, which are spread over all of them.
  uint64_t OffsetIn(int64_t touched) {
    const int64_t every = ranges_ / touched;
    return static_cast<uint64_t>(AnyIndex() % touched * every) * kStride + (random_() % kSize);
  }

  Calls calls;
  CountingSlots slots{calls};
  AddressSpace space{slots};

 private:
  static AddressSpace::Placement At(int64_t index, uint64_t offset) {
    offset += static_cast<uint64_t>(index) * kStride;
    Backing backing;
    backing.kind = Backing::Kind::kBar;
    backing.host = Hva(kFirstHost) + offset;
    AddressSpace::Placement placement;
    placement.pieces.push_back({{kFirst + offset, kSize}, backing});
    return placement;
  }

  const int64_t ranges_;
  const int64_t domain_count_;
  std::mt19937_64 random_{1};
  std::vector<std::unique_ptr<CountingDomain>> domains_;
  std::vector<AddressSpace::DomainHandle> handles_;
  std::vector<AddressSpace::Mapping> mappings_;
};

// The world that this run asks for; kept over its repetitions, for a large one takes long to make.
World& WorldFor(int64_t ranges, int64_t domains) {
  static std::unique_ptr<World> world;
  if (world == nullptr || !world->Is(ranges, domains)) {
    world.reset();
    world = std::make_unique<World>(ranges, domains);
  }
  return *world;
}

template <typename Work>
void Time(benchmark::State& state, World& world, Calls& calls, Work&& work) {
  const Calls before = world.calls;
  const auto start = std::chrono::steady_clock::now();
  work();
  const auto end = std::chrono::steady_clock::now();
  state.SetIterationTime(std::chrono::duration<double>(end - start).count());
  calls.slots += world.calls.slots - before.slots;
  calls.events += world.calls.events - before.events;
  calls.domains += world.calls.domains - before.domains;
  calls.awaits += world.calls.awaits - before.awaits;
}

void Count(benchmark::State& state, const Calls& calls) {
  using benchmark::Counter;
  for (const auto& [name, count] :
       {std::pair("slot_calls", calls.slots), std::pair("event_calls", calls.events),
        std::pair("domain_calls", calls.domains), std::pair("awaits", calls.awaits)}) {
    state.counters[name] = Counter(static_cast<double>(count), Counter::kAvgIterations);
  }
}

void Map(benchmark::State& state) {
  World& world = WorldFor(state.range(0), state.range(1));
  Calls calls;
  for (auto _ : state) {
    AddressSpace::Placement placement = world.Free();
    AddressSpace::Mapping mapping;
    Time(state, world, calls, [&] { mapping = world.space.Map(std::move(placement)).value(); });
  }
  Count(state, calls);
}

void Zap(benchmark::State& state) {
  World& world = WorldFor(state.range(0), state.range(1));
  Calls calls;
  for (auto _ : state) {
    AddressSpace::Mapping mapping = world.space.Map(world.Free()).value();
    AddressSpace::Mapping* const zapped = &mapping;
    Time(state, world, calls, [&] { world.space.Zap({&zapped, 1}); });
  }
  Count(state, calls);
}

// One more domain joins.
void Replay(benchmark::State& state) {
  World& world = WorldFor(state.range(0), state.range(1));
  Calls calls;
  CountingDomain domain(world.calls);
  for (auto _ : state) {
    AddressSpace::DomainHandle handle;
    Time(state, world, calls, [&] { handle = world.space.AddDomain(domain).value(); });
  }
  Count(state, calls);
}

template <typename Address>
void Lookup(benchmark::State& state) {
  World& world = WorldFor(state.range(0), state.range(2));
  std::vector<Address> addresses(4096);
  for (Address& address : addresses) {
    if constexpr (std::is_same_v<Address, Gpa>) {
      address = kFirst + world.OffsetIn(state.range(1));
    } else {
      address = Hva(kFirstHost) + world.OffsetIn(state.range(1));
    }
  }
  size_t i = 0;
  for (auto _ : state) {
    const auto place = world.space.Find(addresses[i++ % addresses.size()]);
    CHECK(place.has_value());
    benchmark::DoNotOptimize(place->range.size);
  }
}

int64_t Iterations(std::string_view operation, int64_t ranges) {
  return operation == "replay" ? std::max<int64_t>(1, 1000 / ranges) : 200;
}

void RegisterLookups(int64_t ranges, int64_t domains) {
  for (const auto& [name, function] :
       {std::pair("lookup_gpa", &Lookup<Gpa>), std::pair("lookup_hva", &Lookup<Hva>)}) {
    for (const int64_t touched : {std::min(ranges, kTouched), ranges}) {
      benchmark::RegisterBenchmark(name, function)
          ->ArgNames({"ranges", "touched", "domains"})
          ->Args({ranges, touched, domains})
          ->Apply(UseLeast)
          ->Iterations(20000)
          ->Repetitions(kRepetitions)
          ->ReportAggregatesOnly();
      if (touched == ranges) break;
    }
  }
}

void RegisterAll() {
  for (const int64_t domains : kDomains) {
    for (const int64_t ranges : kRanges) RegisterLookups(ranges, domains);
  }
  for (const int64_t domains : kDomains) {
    for (const int64_t ranges : kRanges) {
      for (const auto& [name, function] :
           {std::pair("map", &Map), std::pair("zap", &Zap), std::pair("replay", &Replay)}) {
        benchmark::RegisterBenchmark(name, function)
            ->ArgNames({"ranges", "domains"})
            ->Args({ranges, domains})
            ->Apply(UseLeast)
            ->Iterations(Iterations(name, ranges))
            ->Repetitions(kRepetitions)
            ->UseManualTime()
            ->ReportAggregatesOnly()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

// As Google Benchmark names its runs.
std::string LookupName(const std::string& operation, int64_t ranges, int64_t domains) {
  return fmt::format("{}/ranges:{}/touched:{}/domains:{}/iterations:20000/repeats:{}", operation,
                     ranges, kTouched, domains, kRepetitions);
}
std::string ChangeName(const std::string& operation, int64_t ranges, int64_t domains) {
  return fmt::format("{}/ranges:{}/domains:{}/iterations:{}/repeats:{}/manual_time", operation,
                     ranges, domains, Iterations(operation, ranges), kRepetitions);
}

// One gate for each operation: in how many of the worlds it makes other calls than its own.
void JudgeCalls(const Results& results, const std::string& operation, Gates& gates) {
  unsigned worlds = 0;
  unsigned wrong = 0;
  for (const int64_t domains : kDomains) {
    for (const int64_t ranges : kRanges) {
      const auto run = results.Find(ChangeName(operation, ranges, domains));
      if (!run) continue;
      const bool replay = operation == "replay";
      const std::map<std::string, double> expected = {
          {"slot_calls", replay ? 0 : 1},
          {"event_calls", replay ? 0 : 1},
          {"domain_calls", static_cast<double>(replay ? ranges : domains)},
          {"awaits", operation == "zap" ? static_cast<double>(domains) : 0}};
      ++worlds;
      bool as_expected = true;
      for (const auto& [name, calls] : expected) {
        const double counted = run->counters.at(name);
        if (counted == calls) continue;
        as_expected = false;
        gates.Show(fmt::format("{} with {} ranges in {} domains: {} {}, not {}", operation, ranges,
                               domains, counted, name, calls));
      }
      if (!as_expected) ++wrong;
    }
  }
  if (worlds != 0)
    gates.Equal(
        fmt::format("{}: of {} worlds, those with calls for other ranges", operation, worlds),
        wrong, 0);
}

void JudgeGrowth(const Results& results, const std::string& what, const std::string& large,
                 const std::string& small, double limit, Gates& gates) {
  const auto a = results.Find(large);
  const auto b = results.Find(small);
  if (a && b) gates.AtMost(what, a->seconds / b->seconds, limit);
}

void Judge(const Results& results, Gates& gates) {
  for (const char* operation : {"map", "zap", "replay"}) JudgeCalls(results, operation, gates);
  for (const std::string operation : {"lookup_gpa", "lookup_hva"}) {
    for (const int64_t domains : kDomains) {
      JudgeGrowth(results, fmt::format("{} in {} domains, 10000 ranges / 100", operation, domains),
                  LookupName(operation, 10000, domains), LookupName(operation, 100, domains),
                  kLookupGrowth, gates);
    }
    JudgeGrowth(results, operation + " of 10000 ranges, 64 domains / 1",
                LookupName(operation, 10000, 64), LookupName(operation, 10000, 1),
                kLookupGrowthByDomains, gates);
  }
  for (const int64_t domains : kDomains) {
    JudgeGrowth(results, fmt::format("zap in {} domains, 10000 ranges / 1", domains),
                ChangeName("zap", 10000, domains), ChangeName("zap", 1, domains), kZapGrowth,
                gates);
  }
}

}  // namespace
}  // namespace crossbar::bench

int main(int argc, char** argv) {
  crossbar::bench::RegisterAll();
  return crossbar::bench::Main(argc, argv, {.needs_kvm = false, .after = crossbar::bench::Judge});
}
