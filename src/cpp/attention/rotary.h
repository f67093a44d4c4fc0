// Rotary embeddings: pairs of the numbers of a head are turned by angles that grow with the position. All bits are the
// same on every CPU.
#pragma once

#include "common/types.h"
#include "platform/exported.h"

namespace mxfp4moe {

// The largest angle, in radians, whose sine and cosine are computed to the last bits of float64.
constexpr int64_t kMaxAngle = 1 << 24;

constexpr int64_t kMaxPairs = 2048;

struct Rotary {
  const float* x;  // [num_tokens][num_heads][head_dim]
  float* out;      // likewise; it may be `x`
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  int64_t num_pairs;          // at most kMaxPairs: the first 2 num_pairs numbers of a head are turned
  bool interleaved;           // a pair is (2 i, 2 i + 1), not (i, i + num_pairs)
  const int64_t* positions;   // [num_tokens]
  const double* frequencies;  // [num_pairs]: radians for each position
  double factor;              // multiplies sines and cosines
};

// Turns the pairs (a, b) to (a cos - b sin, b cos + a sin) in float32: two products and their sum, each rounded. Sine
// and cosine are computed in float64, times the factor, and rounded once.
void rotary(const Rotary& problem, int num_threads) MXFP4MOE_EXPORTED(rotary);

}  // namespace mxfp4moe
