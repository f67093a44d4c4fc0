#include "quantize/float_scale.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "formats/bf16.h"
#include "threads/split.h"

namespace mxfp4moe {

double amax_of(const KernelTable& kernels, const ScaleBlockArgs& block, bool finite_only, int num_threads) {
  std::atomic<uint64_t> largest{0};  // the bits of magnitudes are ordered as the magnitudes, and NaN comes last
  split_units(block.rows, block.columns, num_threads, [&](int64_t begin, int64_t end) {
    ScaleBlockArgs part = block;
    part.values += begin * block.stride * value_bytes(block.dtype);
    part.rows = end - begin;
    const uint64_t found = f64_bits(kernels.quantize.scale_block_amax(part, finite_only));
    uint64_t known = largest.load(std::memory_order_relaxed);
    while (found > known && !largest.compare_exchange_weak(known, found, std::memory_order_relaxed)) {
    }
  });
  return f64_from_bits(largest.load(std::memory_order_relaxed));
}

float float_scale(double amax, double largest) {
  if (amax == 0.0) return 1.0f;
  if (!std::isfinite(amax)) return std::numeric_limits<float>::quiet_NaN();
  const double lowest = std::numeric_limits<float>::min(), highest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(amax / largest, lowest, highest));
}

}  // namespace mxfp4moe
