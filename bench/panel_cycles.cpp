// Measures the cycles of the inner loop: one panel (two for tiles) of weights of each format by m tokens, with all
// operands in L1. A call cannot be faster than its panels are here; what it takes longer is the cost of memory and
// caches.
//
// Two lengths of K are timed. Their difference gives the cycles of a K-block; the rest is what a panel costs besides.
// The clock is measured by a chain of dependent additions. The measurement needs a core of its own.
//
// There is one binary for each kernel table, whose source is included as it is. `bash bench/build.sh` builds all of
// them; one can be built by hand, for example:
//
//   g++ -std=c++17 -O3 -fira-region=all -fno-math-errno -ffp-contract=off -Isrc/cpp -mavx2 -mfma -mf16c
//     -DKERNELS='"kernels/avx2/kernels_avx2.cpp"' bench/panel_cycles.cpp -o build/panel_cycles_avx2
//
// with -DTILES for tables of tile kernels. Run: build/panel_cycles_avx2 [formats and tokens...]
#include KERNELS

#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mxfp4moe {
namespace {

constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kMaxTokens = 128;
constexpr int64_t kTokenStride = 2880;  // elements; with a real size, rows do not all fall into the same cache sets
constexpr int64_t kOperandBytes = 24 << 10;  // L1 holds 32 KiB or more
constexpr double kTimingSeconds =
    20e-6;  // much longer than reading the clock, much shorter than the time between interruptions
constexpr int kTimings = 300;

uint8_t* allocate(int64_t bytes) {
  auto* p = static_cast<uint8_t*>(std::aligned_alloc(4096, static_cast<size_t>(round_up(bytes, 4096))));
  std::memset(p, 0, static_cast<size_t>(bytes));
  return p;
}

// Float32 scales of fp8_block belong to blocks of 128 rows and columns, which are four K-blocks; those of integers to
// groups of so many K-blocks of a row.
#ifndef GROUP_BLOCKS
#define GROUP_BLOCKS 1
#endif
template <class Decoder>
constexpr int64_t kRangeBlocks = is_integer(Decoder::kFormat) ? GROUP_BLOCKS : 4;

// Memory holds two panels more than are multiplied, because kernels prefetch the next panels.
constexpr int64_t kAllBlocks = 4 * kMaxBlocks;
constexpr int64_t kMaxWeightBytes = block_layout(WeightFormat::kBf16).weight_bytes;
constexpr int64_t kMaxScaleBytes = block_layout(WeightFormat::kNvfp4).scale_bytes;

struct Operands {
  WeightFormat format = WeightFormat::kMxfp4;  // integers with and without zero points have the same decoder
  uint8_t* weights = allocate(kAllBlocks * kMaxWeightBytes);
  uint8_t* scales = allocate(kAllBlocks * kMaxScaleBytes);
  uint16_t* sum_scales = reinterpret_cast<uint16_t*>(allocate(kAllBlocks * kPanelRows * 4));
  float* scale_buffer = reinterpret_cast<float*>(allocate(8 * sum_scale_floats(kMaxBlocks * kBlockK) * 4));
  uint8_t* tokens = allocate(kMaxTokens * kTokenStride * 4);
  uint8_t* slab = allocate(64 << 10);
  float* lanes = reinterpret_cast<float*>(allocate(kMaxTokens * kPanelRows * 16 * 4));
  float* sums = reinterpret_cast<float*>(allocate(kMaxTokens * kPanelRows * 16 * 4));

  Operands() {
    // Such a byte is an ordinary value in every format, because infinity, NaN or subnormals may slow a loop down.
    for (int64_t i = 0; i < kAllBlocks * kMaxWeightBytes; ++i) {
      weights[i] = static_cast<uint8_t>((std::rand() & 0x87) | 0x38);
    }
    std::memset(scales, 120, static_cast<size_t>(kAllBlocks * kMaxScaleBytes));
    // Pairs of these are ordinary numbers in every type.
    for (int64_t i = 0; i < kAllBlocks * kPanelRows * 2; ++i) sum_scales[i] = 0x3f80;
  }
};

template <class Decoder>
constexpr bool kHasRanges = block_layout(Decoder::kFormat).sum_blocks;
template <class Decoder>
constexpr bool kHasSumScales = kHasRanges<Decoder> || Decoder::kFormat == WeightFormat::kNvfp4;
template <class Decoder>
constexpr int64_t kBlockBytes = kWeightBytes<Decoder> + kScaleBytes<Decoder>;

template <class Decoder>
PackedMatrix matrix_of(const Operands& operands, int64_t k_blocks) {
  PackedMatrix m{};
  m.format = operands.format;
  m.num_panels = 4;
  m.k_blocks = k_blocks;
  m.range_blocks = kHasRanges<Decoder> ? kRangeBlocks<Decoder> : k_blocks;
  m.scale_rows = is_integer(Decoder::kFormat) ? kPanelRows : 1;
  m.sum_dtype = is_integer(Decoder::kFormat) ? DType::kBFloat16 : DType::kFloat32;
  m.weights = operands.weights;
  m.scales = operands.scales;
  if (kHasSumScales<Decoder>) {
    m.num_ranges = ceil_div(k_blocks, m.range_blocks);
    m.sum_scales = reinterpret_cast<const uint8_t*>(operands.sum_scales);
  }
  return m;
}

#if defined(TILES)
constexpr int kPanels = 2;

template <class Decoder>
int64_t operand_bytes_of_block(int64_t num_tokens) {
  const bool slab = num_tokens > 2 * kTokenTile && !kIsTile<Decoder>;
  return kPanels * kBlockBytes<Decoder> + padded_tokens(num_tokens) * kBlockK * 2 +
         (slab ? kPanels * kTileElements * 2 : 0);
}

// Configures the tiles for the tokens, which stay configured for as long as this object lives.
template <class Decoder>
class Loop {
 public:
  Loop(const Operands& operands, int64_t num_tokens) : operands_(operands), num_tokens_(num_tokens) {
    configure_for(blocks(kBlockK));
  }
  ~Loop() { tile_release(); }

  void run(int64_t k_blocks) const {
    const PackedMatrix matrix = matrix_of<Decoder>(operands_, k_blocks);
    const PanelPair panels = panel_pair<Decoder>(matrix, 0, 1, operands_.scale_buffer);
    pair_sums<Decoder>(panels, blocks(k_blocks * kBlockK), reinterpret_cast<uint16_t*>(operands_.slab), operands_.sums);
  }

 private:
  TokenBlocks blocks(int64_t k) const { return token_blocks(operands_.tokens, num_tokens_, k); }

  const Operands& operands_;
  const int64_t num_tokens_;
};
#else
constexpr int kPanels = 1;

template <class Decoder>
int64_t operand_bytes_of_block(int64_t num_tokens) {
  const int64_t elements = num_tokens + (num_tokens > direct_limit(Decoder::kFormat) ? kPanelRows : 0);
  return kBlockBytes<Decoder> + elements * kBlockK * static_cast<int64_t>(sizeof(Element));
}

template <class Decoder>
class Loop {
 public:
  Loop(const Operands& operands, int64_t num_tokens) : operands_(operands), num_tokens_(num_tokens) {}

  void run(int64_t k_blocks) const {
    const TokenRows tokens{reinterpret_cast<const Element*>(operands_.tokens), kTokenStride, num_tokens_};
    const PackedMatrix matrix = matrix_of<Decoder>(operands_, k_blocks);
    panel_sums<Decoder>(panel_of<Decoder>(matrix, 0, operands_.scale_buffer), tokens,
                        reinterpret_cast<Element*>(operands_.slab), operands_.lanes, operands_.sums);
  }

 private:
  const Operands& operands_;
  const int64_t num_tokens_;
};
#endif

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Returns the seconds that f() takes, the best of many timings.
template <class F>
double best_seconds(F&& f) {
  const auto time = [&](int64_t calls) {
    const double begin = now();
    for (int64_t i = 0; i < calls; ++i) f();
    return now() - begin;
  };
  int64_t calls = 1;
  while (time(calls) < kTimingSeconds) calls *= 2;
  double best = time(calls);
  for (int i = 1; i < kTimings && best * i < 0.2; ++i) {
    const double seconds = time(calls);
    if (seconds < best) best = seconds;
  }
  return best / static_cast<double>(calls);
}

double cycles_per_second() {
  constexpr int kAdditions = 1000;
  const double seconds = best_seconds([] {
    // Both operands are registers, because a CPU may add an immediate operand at no cost. Nothing is captured, because
    // that would be memory.
    uint64_t sum = 0, one = 1;
#pragma GCC unroll 10
    for (int i = 0; i < kAdditions; ++i) {
      sum += one;
      asm volatile("" : "+r"(sum), "+r"(one));
    }
  });
  return kAdditions / seconds;
}

template <class Decoder>
void measure(const Operands& operands, int64_t num_tokens) {
  // Half of K is timed as well. It holds several whole ranges, because a range that is all of K is computed in another
  // way.
  constexpr int64_t unit = 2 * (kHasRanges<Decoder> ? kRangeBlocks<Decoder> : 2);
  constexpr int64_t min_blocks = kHasRanges<Decoder> ? 2 * unit : unit;
  const int64_t fit = kOperandBytes / operand_bytes_of_block<Decoder>(num_tokens) / unit * unit;
  const int64_t k_blocks = fit < min_blocks ? min_blocks : fit > kMaxBlocks ? kMaxBlocks : fit;
  const Loop<Decoder> loop(operands, num_tokens);
  double clock = 0, whole = 1, half = 1;
  for (int round = 0; round < 3;
       ++round) {  // they are timed in turns, so that each of the three sees the machine at its best
    const double rate = cycles_per_second();
    const double a = best_seconds([&] { loop.run(k_blocks); }), b = best_seconds([&] { loop.run(k_blocks / 2); });
    clock = rate > clock ? rate : clock;
    whole = a < whole ? a : whole;
    half = b < half ? b : half;
  }
  const double block = (whole - half) * clock / static_cast<double>(k_blocks - k_blocks / 2) / kPanels;
  const double panel = whole * clock / kPanels - block * static_cast<double>(k_blocks);
  std::printf("%-10s %6d %8d %12.1f %12.2f %12.1f %11.2f %8.2f\n",
              kWeightFormatNames[static_cast<int>(operands.format)], static_cast<int>(num_tokens),
              static_cast<int>(k_blocks), block, block / static_cast<double>(num_tokens), panel,
              kBlockBytes<Decoder> / block, clock / 1e9);
}

using Measure = void (*)(const Operands&, int64_t);

struct MeasureFormat {
  Measure measure;
  Measure again;  // the macro makes pairs of functions, of which one is needed
};

constexpr MeasureFormat kMeasure[kNumWeightFormats] = MXFP4MOE_ALL_FORMATS(measure, measure);

int format_named(const char* text) {
  for (int i = 0; i < kNumWeightFormats; ++i) {
    if (std::strcmp(text, kWeightFormatNames[i]) == 0) return i;
  }
  return -1;
}

// Names of formats and numbers of tokens in any order. If none of one kind is given, all of that kind are chosen.
struct Choice {
  bool formats[kNumWeightFormats] = {};
  bool tokens[kMaxTokens + 1] = {};

  // Returns the first argument that is neither, or null.
  const char* read(int count, char** arguments) {
    bool any_format = false, any_tokens = false;
    for (int i = 0; i < count; ++i) {
      const int format = format_named(arguments[i]);
      char* end;
      const long m = std::strtol(arguments[i], &end, 10);
      if (format >= 0) {
        formats[format] = any_format = true;
      } else if (*end == 0 && 1 <= m && m <= kMaxTokens) {
        tokens[m] = any_tokens = true;
      } else {
        return arguments[i];
      }
    }
    for (bool& chosen : formats) chosen |= !any_format;
    for (int m : {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128}) tokens[m] |= !any_tokens;
    return nullptr;
  }
};

}  // namespace
}  // namespace mxfp4moe

int main(int argc, char** argv) {
  using namespace mxfp4moe;
#if defined(__AMX_TILE__) && defined(TILES)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) {  // ARCH_REQ_XCOMP_PERM of the tile data
    std::puts("this machine has no AMX, or does not permit it");
    return 1;
  }
#endif
  Choice choice;
  if (const char* wrong = choice.read(argc - 1, argv + 1)) {
    std::printf("expected tokens from 1 to %d or a format, got %s\nformats:", static_cast<int>(kMaxTokens), wrong);
    for (const char* name : kWeightFormatNames) std::printf(" %s", name);
    std::puts("");
    return 1;
  }
  Operands operands;
  std::puts("format     tokens K-blocks cycles/block    per token cycles/panel bytes/cycle      GHz");
  for (int format = 0; format < kNumWeightFormats; ++format) {
    operands.format = static_cast<WeightFormat>(format);
    for (int64_t m = 1; choice.formats[format] && m <= kMaxTokens; ++m) {
      if (choice.tokens[m]) kMeasure[format].measure(operands, m);
    }
  }
  return 0;
}
