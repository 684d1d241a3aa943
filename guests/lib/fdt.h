// A reader of flattened device trees (Devicetree Specification 0.4, chapter 5). Every access is
// checked against the blob's size, every loop is bounded by it: a broken tree reads as a short one.
//
//   Fdt fdt;
//   if (!fdt.Open(data, size)) ...
//   fdt.ForEachNode([](const FdtNode& node) { ... node.Find("reg") ... });
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace guest {

class Fdt;

// A property's value; size 0 and data null if there is none.
struct FdtProperty {
  const uint8_t* data = nullptr;
  uint32_t size = 0;

  explicit operator bool() const { return data != nullptr; }
  uint32_t cell_count() const { return size / 4; }
  uint32_t Cell(uint32_t index) const;                   // 0 past the end
  uint64_t Cells(uint32_t index, uint32_t count) const;  // 1 or 2 cells; the low 64 bits of 3
  const char* Text() const;                              // "" unless it ends in a zero byte
  bool HasText(const char* text) const;                  // any string of a string list
};

struct FdtNode {
  static constexpr unsigned kMaxDepth = 16;

  const Fdt* fdt;
  const char* name;
  unsigned depth;                         // the root is 0
  uint32_t offset;                        // of the first token in the node
  uint32_t address_cells[kMaxDepth + 1];  // [d]: what depth d says about its children, root first
  uint32_t size_cells[kMaxDepth + 1];

  FdtProperty Find(const char* property) const;
  // How this node's own "reg" is built: what its parent says.
  uint32_t reg_address_cells() const { return depth == 0 ? 2 : address_cells[depth - 1]; }
  uint32_t reg_size_cells() const { return depth == 0 ? 1 : size_cells[depth - 1]; }
};

class Fdt {
 public:
  // Checks the header and that its blocks lie inside `size`.
  [[nodiscard]] bool Open(const void* data, size_t size);

  uint32_t size() const { return size_; }

  // Calls visit(const FdtNode&) for each node, parents first.
  template <typename Visit>
  void ForEachNode(Visit visit) const {
    FdtNode node = {};
    uint32_t offset = 0;
    unsigned depth = 0;
    while (NextNode(&offset, &depth, &node)) visit(static_cast<const FdtNode&>(node));
  }

 private:
  friend struct FdtNode;

  enum Token : uint32_t { kBeginNode = 1, kEndNode = 2, kProperty = 3, kNop = 4, kEnd = 9 };

  uint32_t Word(uint32_t offset) const;
  const char* Name(uint32_t offset, uint32_t* next) const;
  bool ReadProperty(uint32_t offset, const char** name, FdtProperty* value, uint32_t* next) const;
  bool NextNode(uint32_t* offset, unsigned* depth, FdtNode* node) const;

  const uint8_t* structure_ = nullptr;
  uint32_t structure_size_ = 0;
  const char* strings_ = nullptr;
  uint32_t strings_size_ = 0;
  uint32_t size_ = 0;
};

}  // namespace guest
