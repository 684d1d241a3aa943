// FdtWriter: one device tree, written from its start to its end, over libfdt's sequential calls.
//
// A local of BuildDeviceTree; one thread. The first error sticks, later calls do nothing, and
// Finish returns it: callers write a tree without a check per property.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "memory/address.h"

namespace crossbar {

class FdtWriter {
 public:
  // Ends its node when it goes.
  class [[nodiscard]] Node {
   public:
    explicit Node(FdtWriter& writer) : writer_(writer) {}
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;
    ~Node() { writer_.EndNode(); }

   private:
    FdtWriter& writer_;
  };

  // The tree takes at most `capacity` bytes. `reserved` is its memory reservation block.
  FdtWriter(size_t capacity, std::span<const GuestRange> reserved);

  Node Begin(const char* name);
  // "name@address", the address in hex.
  Node Begin(std::string_view name, uint64_t address);

  void Flag(const char* name);
  void String(const char* name, std::string_view value);
  void Cells(const char* name, std::span<const uint32_t> cells);
  void Cells(const char* name, std::initializer_list<uint32_t> cells) {
    Cells(name, std::span(cells.begin(), cells.size()));
  }
  // "reg" under a parent with two address and two size cells.
  void Reg(const GuestRange& range);

  Result<std::vector<std::byte>> Finish() &&;

 private:
  void EndNode();
  // Keeps an error and where it was. No libfdt call follows one, so it is the first.
  void Note(int status, std::string_view where);

  std::vector<std::byte> buffer_;
  int error_ = 0;
  std::string where_;
};

// The two cells of a 64-bit number.
constexpr uint32_t HighCell(uint64_t value) {
  return static_cast<uint32_t>(value >> 32);
}
constexpr uint32_t LowCell(uint64_t value) {
  return static_cast<uint32_t>(value);
}

}  // namespace crossbar
