// Stands in for libFuzzer where the compiler has none: runs a fuzz target over its seeds and over
// mutations of them, the same ones each time.
//
// Usage: PROGRAM SEEDS-FOLDER [MUTATIONS-PER-SEED]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

// Values that length and address checks get wrong.
constexpr uint64_t kNasty[] = {0,
                               1,
                               0x7f,
                               0xff,
                               0xffff,
                               0x100000,
                               0x7fffffff,
                               0xffffffff,
                               0x100000000,
                               0x7fffffffffffffff,
                               0xffffffffffffffff};

void Mutate(Input* input, std::mt19937_64& random) {
  for (uint64_t steps = random() % 4 + 1; steps != 0 && !input->empty(); --steps) {
    const size_t at = random() % input->size();
    switch (random() % 4) {
      case 0:
        (*input)[at] = static_cast<uint8_t>(random());
        break;
      case 1:
        (*input)[at] ^= static_cast<uint8_t>(1u << random() % 8);
        break;
      case 2: {
        const uint64_t value = kNasty[random() % std::size(kNasty)];
        for (size_t i = 0; i < 8 && at / 4 * 4 + i < input->size(); ++i)
          (*input)[at / 4 * 4 + i] = static_cast<uint8_t>(value >> 8 * i);
        break;
      }
      default:
        input->resize(at);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: %s SEEDS [MUTATIONS]\n", argv[0]), 1;
  const long mutations = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 5000;
  std::mt19937_64 random(20211104);
  size_t seeds = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    const Input seed{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (long i = 0; i < mutations; ++i) {
      Input input = seed;
      Mutate(&input, random);
      LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    ++seeds;
  }
  std::printf("%zu seeds, %ld mutations of each\n", seeds, mutations);
  return seeds == 0;
}
