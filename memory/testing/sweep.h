// A sweep: runs each path of AddressSpace once for every call that it makes, failing that call, and
// checks after each that slots, ioeventfds and DMA are what the books say, that a failed change has
// changed nothing (G3), and that everything works afterwards.
//
// A SweepWorld says where calls go and how they fail: to fakes, or to KVM through base/failpoint.h.
// A fault that did not fire fails the test.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "memory/testing/heart.h"

namespace crossbar::testing {

class SweepWorld {
 public:
  virtual ~SweepWorld() = default;
  virtual AddressSpace& space() = 0;
  virtual RecordingDomain& domain(int index) = 0;
  virtual const std::vector<std::string>& unsafe() const = 0;

  // From the n-th call of `site` on, `count` calls fail.
  virtual void Arm(const std::string& site, uint64_t n, uint64_t count) = 0;
  virtual void Disarm() = 0;  // and all counts start again
  virtual std::map<std::string, uint64_t> Sites() const = 0;  // calls since Disarm
  virtual uint64_t Fired() const = 0;
  // What KVM or its fake has, not what the books say: "slot 0x1000", "event 0x2000".
  virtual std::set<std::string> Slots() = 0;
  virtual int eventfd() const { return -1; }
  // After an emergency: what it left behind.
  virtual void Drop() = 0;
};

// What a path works on: the placements that a test holds, by a name of its own.
struct SweepState {
  explicit SweepState(SweepWorld& swept) : world(swept) {}

  bool Map(const std::string& name, Placement placement, bool claim = false) {
    for (IoEvent& event : placement.events) event.eventfd = world.eventfd();
    placements[name] = placement;
    auto mapping = claim ? world.space().MapOrClaim(placement) : world.space().Map(placement);
    if (mapping) mappings[name] = *std::move(mapping);
    return mapping.has_value();
  }
  bool Join(int index) {
    auto handle = world.space().AddDomain(world.domain(index));
    if (handle) domains[index] = *std::move(handle);
    return handle.has_value();
  }
  void Zap(const std::vector<std::string>& names) {
    std::vector<Mapping*> zapped;
    for (const std::string& name : names) zapped.push_back(&mappings.at(name));
    world.space().Zap(zapped);
    for (const std::string& name : names) EXPECT_FALSE(mappings.at(name).held());
  }

  // All there is.
  std::set<std::string> Truth() const {
    std::set<std::string> truth = world.Slots();
    for (int i = 0; i < 2; ++i) {
      for (const GuestRange& range : world.domain(i).Mapped())
        truth.insert(fmt::format("{} {}", world.domain(i).name(), range.start));
    }
    return truth;
  }
  // All that should be, by what is live and by the matrix; and that lookups agree.
  std::set<std::string> Expected() const {
    std::set<std::string> expected;
    for (const auto& [name, placement] : placements) {
      const auto mapping = mappings.find(name);
      if (mapping == mappings.end() || !mapping->second.live()) continue;
      for (const IoEvent& event : placement.events)
        expected.insert(fmt::format("event {}", event.address));
      for (const Piece& piece : placement.pieces) {
        const Gpa start = piece.range.start;
        EXPECT_TRUE(world.space().Find(start)) << fmt::format("{}", start);
        expected.insert(fmt::format("slot {}", start));
        if (piece.backing.kind == Backing::Kind::kBar) continue;
        for (const auto& [index, handle] : domains)
          expected.insert(fmt::format("{} {}", world.domain(index).name(), start));
      }
    }
    for (const P2pMatrix::Cell& cell : world.space().Peers().cells) {
      EXPECT_TRUE(world.space().Find(cell.range.start)) << fmt::format("{}", cell.range);
      if (cell.state == CellState::kMapped)
        expected.insert(fmt::format("{} {}", cell.initiator, cell.range.start));
    }
    return expected;
  }
  std::string Live() const {
    std::string live;
    for (const auto& [name, mapping] : mappings) live += mapping.live() ? name + " " : "";
    return live;
  }

  SweepWorld& world;
  std::map<std::string, Placement> placements;
  std::map<std::string, Mapping> mappings;
  std::map<int, AddressSpace::DomainHandle> domains;
};

struct SweepPath {
  std::string name;
  std::function<void(SweepState&)> prepare;
  std::function<bool(SweepState&)> run;  // whether it succeeded; if not, all is as before
  bool may_trap = false;                 // a BAR may be left live without its slot
};

inline std::vector<SweepPath> SweepPaths() {
  const auto usual = [](SweepState& state) {
    EXPECT_TRUE(state.Join(0));
    EXPECT_TRUE(state.Join(1));
    EXPECT_TRUE(state.Map("ram", Of({Ram(0x100000, 0x4000)})));
    EXPECT_TRUE(
        state.Map("bar", Of({Bar(0x1000), Bar(0x3000)}, {EventAt(0x2000), EventAt(0x2008)})));
  };
  const auto claims = [=](SweepState& state) {
    usual(state);
    EXPECT_TRUE(state.Map("claim 1", Of({Bar(0x3000)}, {EventAt(0x2000)}), true));
    EXPECT_TRUE(state.Map("claim 2", Of({Bar(0x0000, 0x2000), Ram(0x9000)}), true));
  };
  return {
      {"Map: a BAR of two pieces and two ioeventfds", usual,
       [](SweepState& state) {
         return state.Map("new",
                          Of({Bar(0x8000), Bar(0x6000)}, {EventAt(0x7000), EventAt(0x7008)}));
       }},
      {"Map: RAM and a BAR", usual,
       [](SweepState& state) {
         return state.Map("new", Of({Bar(0x8000), Ram(0x6000), Ram(0xa000)}));
       }},
      {"MapOrClaim: a free place", usual,
       [](SweepState& state) { return state.Map("new", Of({Bar(0x8000)}), true); }},
      {"MapOrClaim: a place that is taken", usual,
       [](SweepState& state) {
         return state.Map("new", Of({Bar(0x8000), Bar(0x3000)}), true);
       }},
      {"Zap: a BAR", usual, [](SweepState& state) { return state.Zap({"bar"}), true; }},
      {"Zap: all there is", claims,
       [](SweepState& state) {
         return state.Zap({"claim 2", "bar", "ram", "claim 1"}), true;
       }},
      {"Zap: two claims are placed", claims,
       [](SweepState& state) { return state.Zap({"bar"}), true; }},
      {"AddDomain: with RAM and BARs",
       [](SweepState& state) {
         EXPECT_TRUE(state.Join(0));
         EXPECT_TRUE(state.Map("ram", Of({Ram(0x100000), Ram(0x102000)})));
         EXPECT_TRUE(state.Map("bar", Of({Bar(0x1000), Bar(0x110000)})));
       },
       [](SweepState& state) { return state.Join(1); }},
      {"DomainHandle: its end", usual,
       [](SweepState& state) { return state.domains.erase(0) == 1; }},
      {"Demotion: begin and end", usual,
       [](SweepState& state) {
         const auto demotion = state.world.space().DemoteBars();
         return true;
       },
       true},
      {"Demotion: with a zap inside", claims,
       [](SweepState& state) {
         const auto demotion = state.world.space().DemoteBars();
         state.Zap({"bar"});
         return true;
       },
       true},
  };
}

struct SweepCount {
  std::set<std::string> sites;
  uint64_t paths = 0;
  uint64_t occurrences = 0;  // calls, over all paths
  uint64_t fired = 0;        // runs in which a call failed
  uint64_t refused = 0;      // of them, those in which the change failed, and so undid itself
  uint64_t emergencies = 0;  // and those that ended in one (G5)

  std::string ToString() const {
    return fmt::format(
        "{} paths, {} sites, {} occurrences; {} runs with a fault, all fired; {} undone, "
        "{} emergencies",
        paths, sites.size(), occurrences, fired, refused, emergencies);
  }
};

using MakeWorld = std::function<std::unique_ptr<SweepWorld>()>;
using ArmFaults = std::function<void(SweepWorld&)>;

// One run of `path` with what `arm` arms. False where not `faults` faults fired.
inline bool RunWithFaults(const SweepPath& path, const MakeWorld& make, const ArmFaults& arm,
                          uint64_t faults, SweepCount& count) {
  using ::testing::IsEmpty;
  const std::unique_ptr<SweepWorld> world = make();
  SweepState state(*world);
  path.prepare(state);
  const std::set<std::string> before = state.Truth();
  const std::string live_before = state.Live();
  EXPECT_EQ(before, state.Expected());

  world->Disarm();
  arm(*world);
  bool ok = path.run(state);
  const bool fired = world->Fired() >= faults;
  world->Disarm();
  if (fired) ++count.fired;

  const std::set<std::string> expected = state.Expected();
  const std::set<std::string> truth = state.Truth();
  std::vector<std::string> missing;
  std::vector<std::string> extra;
  std::ranges::set_difference(expected, truth, std::back_inserter(missing));
  std::ranges::set_difference(truth, expected, std::back_inserter(extra));
  if (!path.may_trap) {
    EXPECT_THAT(missing, IsEmpty());
  }
  if (world->unsafe().empty()) {
    EXPECT_THAT(extra, IsEmpty());
    if (!ok) {
      EXPECT_EQ(truth, before);
      EXPECT_EQ(state.Live(), live_before);
      ++count.refused;
      ok = path.run(state);
      EXPECT_TRUE(ok) << "it fails without a fault";
    }
    if (path.may_trap && !missing.empty()) {
      { const auto demotion = world->space().DemoteBars(); }
      EXPECT_EQ(state.Truth(), state.Expected()) << "a trapped BAR does not get its slot again";
    }
  } else {
    ++count.emergencies;
  }
  // It works on, emergency or not.
  EXPECT_TRUE(state.Map("another", Of({Ram(0x200000)})));
  EXPECT_TRUE(state.Truth().contains("slot 0x200000"));
  state.mappings.clear();
  state.domains.clear();
  if (world->unsafe().empty()) {
    EXPECT_THAT(state.Truth(), IsEmpty());
  }
  world->Drop();
  return fired;
}

// Every path, every site whose name starts with `prefix`, every occurrence; each failing as many
// times as `times` says, one after the other.
inline SweepCount Sweep(const MakeWorld& make, const std::vector<uint64_t>& times,
                        std::string_view prefix = "") {
  SweepCount count;
  for (const SweepPath& path : SweepPaths()) {
    SCOPED_TRACE(path.name);
    ++count.paths;
    std::map<std::string, uint64_t> sites;
    {
      const std::unique_ptr<SweepWorld> world = make();
      SweepState state(*world);
      path.prepare(state);
      world->Disarm();
      EXPECT_TRUE(path.run(state));
      sites = world->Sites();
      EXPECT_EQ(state.Truth(), state.Expected());
      EXPECT_EQ(world->Fired(), 0u);
    }
    for (const auto& [site, calls] : sites) {
      if (!site.starts_with(prefix)) continue;
      count.sites.insert(site);
      count.occurrences += calls;
      for (uint64_t n = 1; n <= calls; ++n) {
        for (const uint64_t failing : times) {
          SCOPED_TRACE(fmt::format("{} #{} x{}", site, n, failing));
          const bool fired = RunWithFaults(
              path, make, [&](SweepWorld& world) { world.Arm(site, n, failing); }, 1, count);
          EXPECT_TRUE(fired) << "the fault did not fire: nothing was tested";
        }
      }
    }
  }
  return count;
}

}  // namespace crossbar::testing
