#include "attention/rotary.h"

#include <cstring>

#include "threads/split.h"

namespace mxfp4moe {
namespace {

// A sine and a cosine take as long as so many values of a head.
constexpr int64_t kSinCosWork = 16;

struct SinCos {
  double sin, cos;
};

// Computes sine and cosine of an angle in [0, kMaxAngle] with an absolute error below 2^-51, by plain arithmetic: those
// of a math library depend on its version and on the CPU.
SinCos sin_cos(double angle) {
  constexpr double kIntegerMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves an integer
  // pi / 2 is cut into three parts; the first two have so few bits that n times them is exact.
  constexpr double kHalfPi1 = 0x1.921fb54p+0;
  constexpr double kHalfPi2 = 0x1.10b461p-30;
  constexpr double kHalfPi3 = 0x1.a62633145c06ep-58;
  const double n = (angle * 0.6366197723675814 + kIntegerMagic) - kIntegerMagic;
  const double r = ((angle - n * kHalfPi1) - n * kHalfPi2) - n * kHalfPi3;
  const double r2 = r * r;
  // These are the Taylor series. As |r| <= pi / 4, the first terms that are left out are below 3e-18.
  double s = 1.0 / 355687428096000;
  s = s * r2 - 1.0 / 1307674368000;
  s = s * r2 + 1.0 / 6227020800;
  s = s * r2 - 1.0 / 39916800;
  s = s * r2 + 1.0 / 362880;
  s = s * r2 - 1.0 / 5040;
  s = s * r2 + 1.0 / 120;
  s = s * r2 - 1.0 / 6;
  s = r + s * r2 * r;
  double c = -1.0 / 6402373705728000;
  c = c * r2 + 1.0 / 20922789888000;
  c = c * r2 - 1.0 / 87178291200;
  c = c * r2 + 1.0 / 479001600;
  c = c * r2 - 1.0 / 3628800;
  c = c * r2 + 1.0 / 40320;
  c = c * r2 - 1.0 / 720;
  c = c * r2 + 1.0 / 24;
  c = c * r2 - 0.5;
  c = 1.0 + c * r2;
  switch (static_cast<int64_t>(n) & 3) {
    case 0: return {s, c};
    case 1: return {c, -s};
    case 2: return {-s, -c};
    default: return {-c, s};
  }
}

// The cosines of all pairs at a position, then the sines.
void fill_table(const Rotary& p, int64_t position, float* table) {
  for (int64_t i = 0; i < p.num_pairs; ++i) {
    const SinCos turn = sin_cos(static_cast<double>(position) * p.frequencies[i]);
    table[i] = static_cast<float>(turn.cos * p.factor);
    table[p.num_pairs + i] = static_cast<float>(turn.sin * p.factor);
  }
}

void turn_head(const Rotary& p, const float* table, const float* x, float* out) {
  const float* cosines = table;
  const float* sines = table + p.num_pairs;
  const int64_t step = p.interleaved ? 2 : 1, apart = p.interleaved ? 1 : p.num_pairs;
  for (int64_t i = 0; i < p.num_pairs; ++i) {
    const float a = x[i * step], b = x[i * step + apart];
    out[i * step] = a * cosines[i] - b * sines[i];
    out[i * step + apart] = b * cosines[i] + a * sines[i];
  }
  const int64_t turned = 2 * p.num_pairs;
  if (out != x) std::memcpy(out + turned, x + turned, static_cast<size_t>(p.head_dim - turned) * sizeof(float));
}

}  // namespace

void rotary(const Rotary& p, int num_threads) {
  const int64_t token_floats = p.num_heads * p.head_dim;
  split_units(p.num_tokens, token_floats + kSinCosWork * p.num_pairs, num_threads, [&](int64_t begin, int64_t end) {
    float table[2 * kMaxPairs];
    for (int64_t t = begin; t < end; ++t) {
      if (t == begin || p.positions[t] != p.positions[t - 1]) fill_table(p, p.positions[t], table);
      for (int64_t at = t * token_floats; at < (t + 1) * token_floats; at += p.head_dim) {
        turn_head(p, table, p.x + at, p.out + at);
      }
    }
  });
}

}  // namespace mxfp4moe
