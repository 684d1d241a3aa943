#include "lib/apic.h"

#include "lib/io.h"
#include "lib/trap.h"

namespace guest {
namespace {

// Intel SDM volume 3, table 11-1.
enum Register : uint64_t {
  kId = 0x20,
  kTaskPriority = 0x80,
  kEoi = 0xb0,
  kSpurious = 0xf0,
  kInService = 0x100,  // 32 vectors each 16 bytes
  kCommandLow = 0x300,
  kCommandHigh = 0x310,
  kTimerLvt = 0x320,
  kLint0Lvt = 0x350,
  kLint1Lvt = 0x360,
  kErrorLvt = 0x370,
  kInitialCount = 0x380,
  kCurrentCount = 0x390,
  kDivide = 0x3e0,
};
constexpr uint32_t kMasked = 1 << 16;
constexpr uint32_t kPeriodic = 1 << 17;
constexpr uint32_t kEnabled = 1 << 8;
constexpr uint32_t kDivideBy1 = 0xb;

constexpr uint32_t kDeliveryPending = 1 << 12;
constexpr uint32_t kAssert = 1 << 14;
constexpr uint32_t kInit = 5 << 8;
constexpr uint32_t kStartup = 6 << 8;
constexpr uint32_t kToSelf = 1 << 18;

// I/O APIC registers, through an index and a data window.
constexpr uint64_t kIoIndex = kIoApic;
constexpr uint64_t kIoData = kIoApic + 0x10;
constexpr uint32_t kIoVersion = 1;
constexpr uint32_t kIoRedirection = 0x10;
constexpr uint32_t kIoLevel = 1 << 15;

uint32_t Get(Register reg) {
  return Read<uint32_t>(kLocalApic + reg);
}
void Set(Register reg, uint32_t value) {
  Write<uint32_t>(kLocalApic + reg, value);
}

void Command(uint32_t apic_id, uint32_t command) {
  Set(kCommandHigh, apic_id << 24);
  Set(kCommandLow, command);
  for (int i = 0; i < 1000 && (Get(kCommandLow) & kDeliveryPending); ++i) Pause();
}

uint32_t IoApicGet(uint32_t reg) {
  Write<uint32_t>(kIoIndex, reg);
  return Read<uint32_t>(kIoData);
}
void IoApicSet(uint32_t reg, uint32_t value) {
  Write<uint32_t>(kIoIndex, reg);
  Write<uint32_t>(kIoData, value);
}

}  // namespace

void LocalApicStart() {
  Set(kTaskPriority, 0);
  Set(kTimerLvt, kMasked);
  Set(kLint0Lvt, kMasked);
  Set(kLint1Lvt, kMasked);
  Set(kErrorLvt, kMasked);
  Set(kSpurious, kEnabled | vector::kSpurious);
}

uint32_t LocalApicId() {
  return Get(kId) >> 24;
}

void LocalApicEnd() {
  Set(kEoi, 0);
}

bool LocalApicServes(uint8_t vector) {
  return Get(static_cast<Register>(kInService + 16 * (vector / 32))) >> (vector % 32) & 1;
}

void SendIpi(uint32_t apic_id, uint8_t vector) {
  Command(apic_id, kAssert | vector);
}
void SendSelfIpi(uint8_t vector) {
  Command(0, kToSelf | kAssert | vector);
}
void SendInit(uint32_t apic_id) {
  Command(apic_id, kInit | kAssert);
}
void SendStartup(uint32_t apic_id, uint8_t page) {
  Command(apic_id, kStartup | kAssert | page);
}

void StartTimer(uint8_t vector, uint32_t ticks, bool periodic) {
  Set(kDivide, kDivideBy1);
  Set(kTimerLvt, vector | (periodic ? kPeriodic : 0));
  Set(kInitialCount, ticks);
}

void StopTimer() {
  Set(kTimerLvt, kMasked);
  Set(kInitialCount, 0);
}

uint32_t TimerCount() {
  return Get(kCurrentCount);
}

uint32_t IoApicPins() {
  return (IoApicGet(kIoVersion) >> 16 & 0xff) + 1;
}

void RouteIoApicPin(uint32_t pin, uint8_t vector, uint32_t apic_id, Trigger trigger) {
  IoApicSet(kIoRedirection + pin * 2 + 1, apic_id << 24);
  IoApicSet(kIoRedirection + pin * 2, vector | (trigger == Trigger::kLevel ? kIoLevel : 0));
}

void MaskIoApicPin(uint32_t pin) {
  IoApicSet(kIoRedirection + pin * 2, IoApicGet(kIoRedirection + pin * 2) | kMasked);
}

}  // namespace guest
