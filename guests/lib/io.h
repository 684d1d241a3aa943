// Instructions that C++ has no words for: ports, MMIO, MSRs, CPUID, TSC, flags, barriers.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace guest {

inline void Out8(uint16_t port, uint8_t value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
inline void Out16(uint16_t port, uint16_t value) {
  asm volatile("outw %0, %1" ::"a"(value), "Nd"(port));
}
inline void Out32(uint16_t port, uint32_t value) {
  asm volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

inline uint8_t In8(uint16_t port) {
  uint8_t value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
inline uint16_t In16(uint16_t port) {
  uint16_t value;
  asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
inline uint32_t In32(uint16_t port) {
  uint32_t value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

// rep outsb/insb: one instruction for many bytes.
inline void OutString8(uint16_t port, const void* data, size_t count) {
  asm volatile("rep outsb" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}
inline void InString8(uint16_t port, void* data, size_t count) {
  asm volatile("rep insb" : "+D"(data), "+c"(count) : "d"(port) : "memory");
}

// One access of exactly T's width, never merged, split or elided.
template <typename T>
inline T Read(uint64_t address) {
  return *reinterpret_cast<const volatile T*>(address);
}
template <typename T>
inline void Write(uint64_t address, T value) {
  *reinterpret_cast<volatile T*>(address) = value;
}

inline uint64_t ReadMsr(uint32_t msr) {
  uint32_t low, high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
  return static_cast<uint64_t>(high) << 32 | low;
}
inline void WriteMsr(uint32_t msr, uint64_t value) {
  asm volatile("wrmsr" ::"c"(msr), "a"(static_cast<uint32_t>(value)),
               "d"(static_cast<uint32_t>(value >> 32))
               : "memory");
}

inline uint64_t ReadCr4() {
  uint64_t value;
  asm volatile("movq %%cr4, %0" : "=r"(value));
  return value;
}
inline void WriteCr4(uint64_t value) {
  asm volatile("movq %0, %%cr4" ::"r"(value) : "memory");
}
// XSETBV: an extended control register.
inline void WriteXcr(uint32_t index, uint64_t value) {
  asm volatile("xsetbv" ::"c"(index), "a"(static_cast<uint32_t>(value)),
               "d"(static_cast<uint32_t>(value >> 32)));
}

struct CpuidResult {
  uint32_t eax, ebx, ecx, edx;
};
inline CpuidResult Cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidResult r;
  asm volatile("cpuid"
               : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
               : "a"(leaf), "c"(subleaf));
  return r;
}

inline uint64_t ReadTsc() {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
  return static_cast<uint64_t>(high) << 32 | low;
}

inline uint64_t ReadFlags() {
  uint64_t flags;
  asm volatile("pushfq; popq %0" : "=r"(flags)::"memory");
  return flags;
}
inline constexpr uint64_t kFlagsInterrupt = 1 << 9;

inline void EnableInterrupts() {
  asm volatile("sti" ::: "memory");
}
inline void DisableInterrupts() {
  asm volatile("cli" ::: "memory");
}
// Waits for an interrupt without missing one that comes in between; leaves interrupts off.
inline void WaitForInterrupt() {
  asm volatile("sti; hlt; cli" ::: "memory");
}
inline void Pause() {
  asm volatile("pause" ::: "memory");
}
// A compiler barrier; x86 orders the rest but store-to-load.
inline void Barrier() {
  asm volatile("" ::: "memory");
}

// Ends this CPU's part. Interrupts stay off.
[[noreturn]] inline void Halt() {
  for (;;) asm volatile("cli; hlt" ::: "memory");
}

}  // namespace guest
