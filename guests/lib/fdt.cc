#include "lib/fdt.h"

#include "lib/string.h"

namespace guest {
namespace {

constexpr uint32_t kMagic = 0xd00dfeed;
constexpr uint32_t kHeaderSize = 40;
constexpr uint32_t kVersion = 17;

uint32_t BigEndian(const uint8_t* p) {
  uint32_t value;
  __builtin_memcpy(&value, p, 4);
  return __builtin_bswap32(value);
}

// The length of a text that must end before `size`; `size` if it does not.
uint32_t BoundedLength(const char* text, uint32_t size) {
  uint32_t i = 0;
  while (i < size && text[i] != 0) ++i;
  return i;
}

}  // namespace

uint32_t FdtProperty::Cell(uint32_t index) const {
  return index < cell_count() ? BigEndian(data + index * 4) : 0;
}

uint64_t FdtProperty::Cells(uint32_t index, uint32_t count) const {
  uint64_t value = 0;
  for (uint32_t i = 0; i < count; ++i) value = value << 32 | Cell(index + i);
  return value;
}

const char* FdtProperty::Text() const {
  if (size == 0 || data[size - 1] != 0) return "";
  return reinterpret_cast<const char*>(data);
}

bool FdtProperty::HasText(const char* text) const {
  if (size == 0 || data[size - 1] != 0) return false;
  for (uint32_t i = 0; i < size;) {
    const auto* entry = reinterpret_cast<const char*>(data) + i;
    if (Equal(entry, text)) return true;
    i += BoundedLength(entry, size - i) + 1;
  }
  return false;
}

bool Fdt::Open(const void* data, size_t size) {
  const auto* p = static_cast<const uint8_t*>(data);
  if (size < kHeaderSize || BigEndian(p) != kMagic) return false;
  const uint32_t total = BigEndian(p + 4);
  const uint32_t structure = BigEndian(p + 8);
  const uint32_t strings = BigEndian(p + 12);
  const uint32_t version = BigEndian(p + 20);
  const uint32_t last_compatible = BigEndian(p + 24);
  const uint32_t strings_size = BigEndian(p + 32);
  const uint32_t structure_size = BigEndian(p + 36);
  if (total < kHeaderSize || total > size) return false;
  if (version < kVersion || last_compatible > kVersion) return false;
  if (structure > total || structure_size > total - structure || structure % 4 != 0) return false;
  if (strings > total || strings_size > total - strings) return false;
  structure_ = p + structure;
  structure_size_ = structure_size;
  strings_ = reinterpret_cast<const char*>(p) + strings;
  strings_size_ = strings_size;
  size_ = total;
  return true;
}

uint32_t Fdt::Word(uint32_t offset) const {
  if (offset > structure_size_ || structure_size_ - offset < 4) return kEnd;
  return BigEndian(structure_ + offset);
}

// The name after a begin-node token, and where the next token is. Null if it does not end.
const char* Fdt::Name(uint32_t offset, uint32_t* next) const {
  const auto* name = reinterpret_cast<const char*>(structure_) + offset;
  const uint32_t room = structure_size_ - offset;
  const uint32_t length = BoundedLength(name, room);
  if (length == room) return nullptr;
  *next = (offset + length + 1 + 3) & ~3u;
  return name;
}

// The property whose token is at `offset`.
bool Fdt::ReadProperty(uint32_t offset, const char** name, FdtProperty* value,
                       uint32_t* next) const {
  if (structure_size_ - offset < 12) return false;
  const uint32_t size = Word(offset + 4);
  const uint32_t name_offset = Word(offset + 8);
  if (size > structure_size_ - offset - 12) return false;
  if (name_offset >= strings_size_) return false;
  *name = strings_ + name_offset;
  const uint32_t room = strings_size_ - name_offset;
  if (BoundedLength(*name, room) == room) return false;
  value->data = structure_ + offset + 12;
  value->size = size;
  *next = offset + 12 + ((size + 3) & ~3u);
  return true;
}

bool Fdt::NextNode(uint32_t* offset, unsigned* depth, FdtNode* node) const {
  // Each turn moves on by at least one token, so the loop ends with the structure block.
  for (;;) {
    switch (Word(*offset)) {
      case kNop:
        *offset += 4;
        break;
      case kEndNode:
        if (*depth == 0) return false;
        --*depth;
        *offset += 4;
        break;
      case kProperty: {
        const char* name;
        FdtProperty value;
        if (!ReadProperty(*offset, &name, &value, offset)) return false;
        break;
      }
      case kBeginNode: {
        if (*depth > FdtNode::kMaxDepth) return false;
        node->name = Name(*offset + 4, offset);
        if (node->name == nullptr) return false;
        node->fdt = this;
        node->depth = (*depth)++;
        node->offset = *offset;
        const FdtProperty address = node->Find("#address-cells");
        const FdtProperty size = node->Find("#size-cells");
        node->address_cells[node->depth] = address ? address.Cell(0) : 2;
        node->size_cells[node->depth] = size ? size.Cell(0) : 1;
        return true;
      }
      default:
        return false;
    }
  }
}

FdtProperty FdtNode::Find(const char* property) const {
  uint32_t at = offset;
  for (;;) {
    const uint32_t token = fdt->Word(at);
    if (token == Fdt::kNop) {
      at += 4;
      continue;
    }
    if (token != Fdt::kProperty) return {};  // a node's properties come before its children
    const char* found;
    FdtProperty value;
    if (!fdt->ReadProperty(at, &found, &value, &at)) return {};
    if (Equal(found, property)) return value;
  }
}

}  // namespace guest
