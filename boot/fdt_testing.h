// A device tree read back with libfdt, for tests: properties by path, wrong ones fail the test.
#pragma once

#include <gtest/gtest.h>
#include <libfdt.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace crossbar::testing_tables {

class Tree {
 public:
  explicit Tree(std::vector<std::byte> blob) : blob_(std::move(blob)) {
    EXPECT_EQ(fdt_check_full(fdt(), blob_.size()), 0);
  }

  const void* fdt() const { return blob_.data(); }

  bool Has(const std::string& path) const { return fdt_path_offset(fdt(), path.c_str()) >= 0; }

  std::string_view Property(const std::string& path, const char* name) const {
    const int node = fdt_path_offset(fdt(), path.c_str());
    int size = 0;
    const void* data = node < 0 ? nullptr : fdt_getprop(fdt(), node, name, &size);
    if (data != nullptr) return {static_cast<const char*>(data), static_cast<size_t>(size)};
    ADD_FAILURE() << path << " has no " << name;
    return {};
  }

  std::string String(const std::string& path, const char* name) const {
    const std::string_view value = Property(path, name);
    if (value.empty() || value.back() != '\0') {
      ADD_FAILURE() << path << " " << name << " is no string";
      return "";
    }
    return std::string(value.substr(0, value.size() - 1));
  }

  std::vector<uint32_t> Cells(const std::string& path, const char* name) const {
    const std::string_view value = Property(path, name);
    EXPECT_EQ(value.size() % 4, 0u);
    std::vector<uint32_t> cells;
    for (size_t i = 0; i + 4 <= value.size(); i += 4) {
      cells.push_back(fdt32_ld(reinterpret_cast<const fdt32_t*>(value.data() + i)));
    }
    return cells;
  }

  std::vector<std::string> Children(const std::string& path) const {
    std::vector<std::string> names;
    int node = 0;
    fdt_for_each_subnode(node, fdt(), fdt_path_offset(fdt(), path.c_str())) {
      names.emplace_back(fdt_get_name(fdt(), node, nullptr));
    }
    return names;
  }

 private:
  std::vector<std::byte> blob_;
};

// The 64-bit number in two cells.
inline uint64_t Cells64(const std::vector<uint32_t>& cells, size_t at) {
  return uint64_t{cells.at(at)} << 32 | cells.at(at + 1);
}

}  // namespace crossbar::testing_tables
