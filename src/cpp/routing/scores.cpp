#include "routing/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "routing/elementary.h"

namespace mxfp4moe {

void softcap(const float* logits, int64_t n, float cap, float* capped) {
  constexpr float kExcluded = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    const double magnitude = tanh_nonnegative(std::fabs(logits[i] / static_cast<double>(cap)));
    const float value = static_cast<float>(cap * (logits[i] < 0.0f ? -magnitude : magnitude));
    capped[i] = logits[i] == kExcluded ? kExcluded : value;
  }
}

void sigmoid(const float* logits, int64_t n, float* scores) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = logits[i];
    const double e = exp_nonpositive(-std::fabs(x));
    scores[i] = static_cast<float>((x < 0.0 ? e : 1.0) / (1.0 + e));
  }
}

void sqrt_softplus(const float* logits, int64_t n, float* scores) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = logits[i];
    const double log = log1p_unit(exp_nonpositive(-std::fabs(x)));
    scores[i] = static_cast<float>(std::sqrt((x < 0.0 ? 0.0 : x) + log));
  }
}

double exp_differences(const float* x, int64_t n, double largest, double* exponentials) {
  for (int64_t i = 0; i < n; ++i) exponentials[i] = exp_nonpositive(x[i] - largest);
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += exponentials[i + lane];
  }
  for (int lane = 0; i + lane < n; ++lane) lanes[lane] += exponentials[i + lane];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

double norm(const float* scores, int64_t n, double order) {
  double sum = 0.0;
  if (order == 1.0) {
    for (int64_t i = 0; i < n; ++i) sum += scores[i];
    return sum;
  }
  // The powers are relative to the largest score, so that none overflows and the sum is at least 1.
  const double largest = *std::max_element(scores, scores + n);
  if (largest == 0.0) return 0.0;
  for (int64_t i = 0; i < n; ++i) {
    if (scores[i] > 0.0f) sum += exp_nonpositive(order * log_positive(scores[i] / largest));
  }
  return largest / exp_nonpositive(-log_positive(sum) / order);
}

}  // namespace mxfp4moe
