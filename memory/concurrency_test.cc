// Everything at once, for ThreadSanitizer and for what only overlapping calls show: guests, devices
// and forwarders reach for BARs while those are zapped, moved and placed anew, domains come, die
// and go, and BARs are demoted. The hardware of a BAR answers only while its function has decode
// on; who reaches it at another time has broken G1, G2 or G7.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "base/log.h"
#include "base/sys.h"
#include "memory/guarded_copy.h"
#include "memory/host_mapping.h"
#include "memory/testing/heart.h"

namespace crossbar::testing {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kFunctions = 3;
constexpr uint64_t kPlaces = 4;  // fewer than pieces, so that functions collide and claim
constexpr uint64_t kPlaceSize = 2 * kPageSize;

uint64_t PlaceAt(uint64_t index) { return 0x10000 + index * kPlaceSize; }

// A function with one BAR of two pieces, as devices/ will have it.
struct Function {
  std::atomic<bool> decode = false;
  std::atomic<uint64_t> sequence = 1;  // odd: zapped
  Mapping mapping;
};

class Machine {
 public:
  Machine() {
    heart.recorder.Forgetful();
    log::SetLevel(LogLevel::kError);
    memory = sys::MemfdCreate("bars", 0).value();
    EXPECT_TRUE(sys::Ftruncate(memory.get(), kFunctions * kPlaceSize));
    mapped = HostMapping::Map(memory.get(), 0, kFunctions * kPlaceSize, PROT_READ | PROT_WRITE)
                 .value();
    for (size_t i = 0; i < mapped.size(); ++i)
      mapped.bytes()[i] = std::byte(1 + i / kPlaceSize);
  }
  ~Machine() { log::SetLevel(LogLevel::kInfo); }

  Placement BarOf(uint64_t function, uint64_t place) const {
    Placement placement;
    for (uint64_t offset = 0; offset < kPlaceSize; offset += kPageSize) {
      Piece piece =
          Bar(PlaceAt(place) + offset, kPageSize, nullptr, static_cast<uint8_t>(function));
      piece.backing.host = mapped.address() + function * kPlaceSize + offset;
      piece.backing.bar_offset = offset;
      placement.pieces.push_back(piece);
    }
    return placement;
  }

  // Somebody reached the BAR of `backing`: a slot, a domain or a pin let him.
  void Reached(const Backing& backing, const char* by) {
    ++reached;
    EXPECT_TRUE(functions[backing.bar].decode) << by << " reached BAR " << int{backing.bar}
                                               << " without decode";
  }

  bool running() const { return std::chrono::steady_clock::now() < end; }

  void Run(uint64_t i);
  void Guest(unsigned seed);
  void Device(RecordingDomain& domain, unsigned seed);
  void Forwarder(unsigned seed);
  void Domains();
  void Watcher();

  const std::chrono::steady_clock::time_point end = std::chrono::steady_clock::now() + 2500ms;
  Heart heart;
  Fd memory;
  HostMapping mapped;
  std::array<Function, kFunctions> functions;
  std::atomic<uint64_t> reached = 0;
  std::atomic<uint64_t> changes = 0;
  std::atomic<uint64_t> claims = 0;
};

// The one who owns function `i`: decode on, place; zap, decode off; and moves.
void Machine::Run(uint64_t i) {
  std::mt19937 random(static_cast<unsigned>(i));
  Function& function = functions[i];
  while (running()) {
    function.decode = true;
    ++function.sequence;
    function.mapping = heart.Claim(BarOf(i, random() % kPlaces));
    if (!function.mapping.live()) ++claims;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
    Mapping* const mappings[] = {&function.mapping};
    heart.space.Zap(mappings);
    // The ack: nobody may reach it from here on.
    function.decode = false;
    ++function.sequence;
    ++changes;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
  }
}

// A vCPU: reaches what its slots hold, and traps to a lookup and a guarded copy.
void Machine::Guest(unsigned seed) {
  std::mt19937 random(seed);
  while (running()) {
    const Gpa address(PlaceAt(random() % (kPlaces + 1)) + random() % kPlaceSize);
    std::array<uint64_t, kFunctions> sequences;
    for (size_t i = 0; i < kFunctions; ++i) sequences[i] = functions[i].sequence;
    const auto place = heart.space.Find(address);
    if (place) {
      ASSERT_TRUE(place->range.Contains(address));
      std::byte value{};
      // Memory stays mapped; what it holds says whose it is.
      ASSERT_TRUE(GuardedRead(place->backing.host, {&value, 1}));
      const uint8_t bar = place->backing.bar;
      EXPECT_EQ(value, std::byte(1 + bar));
      EXPECT_FALSE(sequences[bar] % 2 == 1 && functions[bar].sequence == sequences[bar])
          << "found after its zap";
      const auto by_host = heart.space.Find(place->backing.host);
      EXPECT_TRUE(!by_host || by_host->backing.bar == bar);
    }
    heart.slots.GuestAccess(address, [&](const Memslot& slot) {
      const uint64_t at = slot.host - mapped.address();
      Backing backing;
      backing.bar = static_cast<uint8_t>(at / kPlaceSize);
      Reached(backing, "a vCPU");
    });
  }
}

// A device behind `domain`.
void Machine::Device(RecordingDomain& domain, unsigned seed) {
  std::mt19937 random(seed);
  while (running()) {
    const Gpa address(PlaceAt(random() % kPlaces) + random() % kPlaceSize);
    domain.Dma(address, [&](const Backing& backing) { Reached(backing, "a device"); });
    std::this_thread::yield();
  }
}

// Forwards DMA: while it holds the pin the BAR answers.
void Machine::Forwarder(unsigned seed) {
  std::mt19937 random(seed);
  while (running()) {
    const Gpa address(PlaceAt(random() % kPlaces) + (random() % kPlaceSize) / 64 * 64);
    const auto pin = heart.space.TryPin({address, 64});
    if (!pin) continue;
    Reached(pin->place().backing, "a forward");
    if (random() % 8 == 0) std::this_thread::sleep_for(50us);
    Reached(pin->place().backing, "a long forward");
  }
}

// B joins and leaves; its server also dies and comes back. BARs are demoted meanwhile.
void Machine::Domains() {
  for (unsigned i = 0; running(); ++i) {
    RecordingDomain server(heart.recorder, "server");
    server.how = "fd";
    auto b = heart.Join(heart.b);
    const auto c = heart.Join(server);
    std::this_thread::sleep_for(500us);
    {
      const auto demotion = heart.space.DemoteBars();
      std::this_thread::sleep_for(100us);
    }
    if (i % 3 == 0) server.Die();
    b.Reset();
    std::this_thread::sleep_for(100us);
  }
}

void Machine::Watcher() {
  uint64_t last = 0;
  while (running()) {
    const P2pMatrix matrix = heart.space.Peers();
    EXPECT_GE(matrix.generation, last);
    last = matrix.generation;
    for (const P2pMatrix::Cell& cell : matrix.cells) {
      EXPECT_LT(cell.bar, kFunctions);
      EXPECT_EQ(cell.state, CellState::kMapped);
    }
    EXPECT_LE(matrix.cells.size(), 3 * 2 * kFunctions);
    std::this_thread::sleep_for(100us);
  }
}

TEST(AddressSpaceConcurrency, G2G7G10NobodyReachesABarWithoutDecodeWhateverElseGoesOn) {
  Machine machine;
  {
    const auto a = machine.heart.Join(machine.heart.a);
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < kFunctions; ++i) threads.emplace_back([&, i] { machine.Run(i); });
    for (unsigned i = 0; i < 2; ++i) threads.emplace_back([&, i] { machine.Guest(i); });
    threads.emplace_back([&] { machine.Device(machine.heart.a, 10); });
    threads.emplace_back([&] { machine.Device(machine.heart.b, 11); });
    threads.emplace_back([&] { machine.Forwarder(20); });
    threads.emplace_back([&] { machine.Domains(); });
    threads.emplace_back([&] { machine.Watcher(); });
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_TRUE(machine.heart.unsafe.empty());
  EXPECT_GT(machine.changes, 10u);
  EXPECT_GT(machine.reached, 10u) << "nothing was tested";
  EXPECT_GT(machine.claims, 0u) << "no two functions collided";
  RecordProperty("changes", std::to_string(machine.changes));
  RecordProperty("reached", std::to_string(machine.reached));
}

}  // namespace
}  // namespace crossbar::testing
