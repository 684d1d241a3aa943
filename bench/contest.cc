#include "bench/contest.h"

#include <algorithm>
#include <random>

#include "base/check.h"

namespace crossbar::bench {
namespace {

constexpr unsigned kResamples = 2000;

// Whether more rounds cannot be expected to change the verdict.
bool Decided(const Pairs& pairs, Limit limit) {
  const Interval ratio = pairs.Ratio();
  return ratio.high <= limit.ratio || ratio.low > limit.ratio;
}

Result<> PlayRound(const Sampler& ours, const Sampler& reference, bool ours_first,
                   std::vector<Pairs>& quantities) {
  std::vector<double> first = TRY(ours_first ? ours() : reference());
  std::vector<double> second = TRY(ours_first ? reference() : ours());
  if (!ours_first) std::swap(first, second);
  CHECK(first.size() == second.size());
  quantities.resize(first.size());
  for (size_t i = 0; i < quantities.size(); ++i) {
    quantities[i].ours.push_back(first[i]);
    quantities[i].reference.push_back(second[i]);
  }
  return {};
}

}  // namespace

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  if (values.size() % 2 != 0) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

Interval MedianInterval(std::span<const double> values) {
  CHECK(!values.empty());
  std::mt19937_64 random(1);  // the same samples give the same interval
  std::uniform_int_distribution<size_t> pick(0, values.size() - 1);
  std::vector<double> medians;
  std::vector<double> resample(values.size());
  for (unsigned i = 0; i < kResamples; ++i) {
    for (double& value : resample) value = values[pick(random)];
    medians.push_back(Median(resample));
  }
  std::ranges::sort(medians);
  return {medians[kResamples / 40], Median({values.begin(), values.end()}),
          medians[kResamples - 1 - kResamples / 40]};
}

Interval Pairs::Ratio() const {
  std::vector<double> ratios;
  for (size_t i = 0; i < ours.size(); ++i) ratios.push_back(ours[i] / reference[i]);
  return MedianInterval(ratios);
}

Result<std::vector<Pairs>> Compare(const Sampler& ours, const Sampler& reference, Limit limit,
                                   Effort effort) {
  const auto end = std::chrono::steady_clock::now() + effort.at_most;
  TRY(ours());
  TRY(reference());
  std::vector<Pairs> quantities;
  do {
    for (unsigned i = 0; i < effort.rounds; ++i)
      TRY(PlayRound(ours, reference, /*ours_first=*/i % 2 == 0, quantities));
  } while (
      std::chrono::steady_clock::now() < end &&
      !std::ranges::all_of(quantities, [&](const Pairs& pairs) { return Decided(pairs, limit); }));
  return quantities;
}

}  // namespace crossbar::bench
