// Heart: what AddressSpace itself costs, over a memslot table and DMA domains that cost nothing.
//
// Map, zap and lookup by number of live ranges, map, zap and replay by number of domains too.
// Counters give the exact calls of each operation: slot_calls, and domain_calls (maps, or unmaps
// started).
//
// Gates: the calls of each operation are those of its own pieces, whatever else is placed; the time
// of a zap does not grow with other ranges, and that of a lookup at most logarithmically. The
// bounds on time leave room for cache misses; a walk over all ranges would be at 100 (lookup) or
// more (zap).
#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
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
constexpr double kZapGrowth = 8;

struct Calls {
  uint64_t slots = 0;
  uint64_t domains = 0;
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
  Result<> AddIoEvent(const IoEvent&) override { return {}; }
  Result<> RemoveIoEvent(const IoEvent&) override { return {}; }
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
  // A placement in the room behind one of the live ranges.
  AddressSpace::Placement Free() { return At(AnyIndex(), kSize); }
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
  calls.domains += world.calls.domains - before.domains;
}

void Count(benchmark::State& state, const Calls& calls) {
  using benchmark::Counter;
  state.counters["slot_calls"] = Counter(static_cast<double>(calls.slots), Counter::kAvgIterations);
  state.counters["domain_calls"] =
      Counter(static_cast<double>(calls.domains), Counter::kAvgIterations);
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
  World& world = WorldFor(state.range(0), 1);
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

void RegisterAll() {
  for (const int64_t ranges : kRanges) {
    for (const auto& [name, function] :
         {std::pair("lookup_gpa", &Lookup<Gpa>), std::pair("lookup_hva", &Lookup<Hva>)}) {
      for (const int64_t touched : {std::min(ranges, kTouched), ranges}) {
        benchmark::RegisterBenchmark(name, function)
            ->ArgNames({"ranges", "touched"})
            ->Args({ranges, touched})
            ->Apply(UseLeast)
            ->Iterations(20000)
            ->Repetitions(kRepetitions)
            ->ReportAggregatesOnly();
        if (touched == ranges) break;
      }
    }
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
std::string LookupName(const std::string& operation, int64_t ranges) {
  return fmt::format("{}/ranges:{}/touched:{}/iterations:20000/repeats:{}", operation, ranges,
                     kTouched, kRepetitions);
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
      const double slot_calls = run->counters.at("slot_calls");
      const double domain_calls = run->counters.at("domain_calls");
      ++worlds;
      if (slot_calls == (replay ? 0 : 1) &&
          domain_calls == static_cast<double>(replay ? ranges : domains))
        continue;
      ++wrong;
      gates.Show(fmt::format("{} with {} ranges in {} domains: {} slot calls, {} domain calls",
                             operation, ranges, domains, slot_calls, domain_calls));
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
    JudgeGrowth(results, operation + ", 10000 ranges / 100", LookupName(operation, 10000),
                LookupName(operation, 100), kLookupGrowth, gates);
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
