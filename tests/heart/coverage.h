// Counts what the property test has done, by operation and by class of outcome, so that it is
// visible that the rare paths are reached. A class that is not in the list is a mistake of the
// test.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/check.h"

namespace crossbar::heart {

class Coverage {
 public:
  Coverage();
  void Count(std::string_view name) {
    const auto found = counts_.find(name);
    CHECK(found != counts_.end(), "{} is not a class", name);
    ++found->second;
  }
  std::string ToString() const;
  // Classes that were never hit, in one line; empty where all were.
  std::string Missing() const;

 private:
  std::map<std::string_view, uint64_t> counts_;
};

}  // namespace crossbar::heart
