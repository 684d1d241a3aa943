#include "boot/fdt_writer.h"

#include <libfdt.h>

#include <cstring>
#include <utility>

namespace crossbar {

FdtWriter::FdtWriter(size_t capacity, std::span<const GuestRange> reserved) : buffer_(capacity) {
  // libfdt searches all names for each property; a few repeated ones cost less.
  Note(fdt_create_with_flags(buffer_.data(), static_cast<int>(buffer_.size()),
                             FDT_CREATE_FLAG_NO_NAME_DEDUP),
       "header");
  for (const GuestRange& range : reserved) {
    if (error_ != 0) return;
    Note(fdt_add_reservemap_entry(buffer_.data(), range.start.value(), range.size), "/memreserve/");
  }
  if (error_ == 0) Note(fdt_finish_reservemap(buffer_.data()), "/memreserve/");
}

FdtWriter::Node FdtWriter::Begin(const char* name) {
  if (error_ == 0) Note(fdt_begin_node(buffer_.data(), name), name);
  return Node(*this);
}

FdtWriter::Node FdtWriter::Begin(std::string_view name, uint64_t address) {
  return Begin(fmt::format("{}@{:x}", name, address).c_str());
}

void FdtWriter::Flag(const char* name) {
  if (error_ == 0) Note(fdt_property(buffer_.data(), name, nullptr, 0), name);
}

void FdtWriter::String(const char* name, std::string_view value) {
  if (error_ != 0) return;
  void* data = nullptr;
  Note(fdt_property_placeholder(buffer_.data(), name, static_cast<int>(value.size() + 1), &data),
       name);
  // The buffer was zero: the terminator is there.
  if (error_ == 0 && !value.empty()) std::memcpy(data, value.data(), value.size());
}

void FdtWriter::Cells(const char* name, std::span<const uint32_t> cells) {
  if (error_ != 0) return;
  void* data = nullptr;
  Note(fdt_property_placeholder(buffer_.data(), name, static_cast<int>(cells.size_bytes()), &data),
       name);
  if (error_ != 0) return;
  for (size_t i = 0; i < cells.size(); ++i) {
    const fdt32_t cell = cpu_to_fdt32(cells[i]);
    std::memcpy(static_cast<std::byte*>(data) + i * sizeof(cell), &cell, sizeof(cell));
  }
}

void FdtWriter::Reg(const GuestRange& range) {
  const uint64_t start = range.start.value();
  Cells("reg", {HighCell(start), LowCell(start), HighCell(range.size), LowCell(range.size)});
}

void FdtWriter::EndNode() {
  if (error_ == 0) Note(fdt_end_node(buffer_.data()), "end of a node");
}

void FdtWriter::Note(int status, std::string_view where) {
  if (status == 0) return;
  error_ = status;
  where_ = where;
}

Result<std::vector<std::byte>> FdtWriter::Finish() && {
  if (error_ == 0) Note(fdt_finish(buffer_.data()), "end of the tree");
  if (error_ != 0) {
    return Fail("cannot write the device tree at {}: {} (room for {} bytes)", where_,
                fdt_strerror(error_), buffer_.size());
  }
  const void* const tree = buffer_.data();
  buffer_.resize(fdt_totalsize(tree));
  return std::move(buffer_);
}

}  // namespace crossbar
