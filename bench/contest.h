// Contest: two programs or loops measured side by side on a machine that is never quiet.
//
// Ours and the reference take turns, ABBA, so that whatever slows the machine slows both. A figure
// is the median over rounds of ours / reference, with a 95% confidence interval (percentile
// bootstrap). Nothing is dropped: more rounds are added until the interval is on one side of the
// limit or the time is up.
#pragma once

#include <chrono>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"

namespace crossbar::bench {

double Median(std::vector<double> values);

struct Interval {
  double low = 0;
  double median = 0;
  double high = 0;
};
Interval MedianInterval(std::span<const double> values);

// What the rounds gave for one quantity, in seconds, index by index.
struct Pairs {
  std::vector<double> ours;
  std::vector<double> reference;
  Interval Ratio() const;
};

struct Limit {
  // kUpperBound: the whole interval has to be below. For quantities whose interval stays wider than
  // the margin (a wait for other CPUs is part of them), kMedian.
  enum class On { kUpperBound, kMedian };
  double ratio = 0;
  On on = On::kUpperBound;

  bool Allows(const Interval& interval) const {
    return (on == On::kUpperBound ? interval.high : interval.median) <= ratio;
  }
};

struct Effort {
  unsigned rounds = 30;              // at least, and in each lot that follows
  std::chrono::seconds at_most{10};  // no new lot is begun after that
};

// Runs once and returns one figure for each quantity, in seconds.
using Sampler = std::function<Result<std::vector<double>>()>;

// One Pairs for each quantity. Each sampler runs once more, first and not counted.
Result<std::vector<Pairs>> Compare(const Sampler& ours, const Sampler& reference, Limit limit,
                                   Effort effort);

}  // namespace crossbar::bench
