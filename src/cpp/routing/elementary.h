// exp, log and tanh in float64, for scores that are then rounded to float32. They are plain arithmetic without
// branches, which compilers vectorize, and every CPU computes the same bits; those of a math library would depend on
// its version.
#pragma once

#include "formats/bf16.h"

namespace mxfp4moe {

constexpr double kLn2 = 0.6931471805599453;

// Computes e^x for x <= 0 with a relative error below 2^-46. What is less than -708 counts as -708, whose result of
// 3e-308 becomes zero as a float32.
static inline double exp_nonpositive(double x) {
  constexpr double kIntegerMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves an integer in the low bits
  // ln 2 is cut into two parts; the first has so few bits that n times it is exact.
  constexpr double kLn2High = 0.69314718036912381649;
  constexpr double kLn2Low = 1.9082149292705877e-10;
  x = x < -708.0 ? -708.0 : x;
  const double shifted = x * (1.0 / kLn2) + kIntegerMagic;
  const double n = shifted - kIntegerMagic;
  const double r = (x - n * kLn2High) - n * kLn2Low;
  // This is the Taylor series. As |r| <= ln 2 / 2, the first term that is left out is below 7e-15.
  double p = 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * f64_from_bits((f64_bits(shifted) + 1023) << 52);
}

// Computes ln(1 + y) for 0 <= y <= 1 with a relative error below 2^-49.
static inline double log1p_unit(double y) {
  // ln m = 2 atanh u with u = (m - 1) / (m + 1), where m is 1 + y or half of that, so that |u| <= 0.172.
  const double halved = y > 0.41421356 ? 1.0 : 0.0;
  const double u = (y - halved) / (y + 2.0 + halved);
  const double u2 = u * u;
  double p = 1.0 / 17;
  p = p * u2 + 1.0 / 15;
  p = p * u2 + 1.0 / 13;
  p = p * u2 + 1.0 / 11;
  p = p * u2 + 1.0 / 9;
  p = p * u2 + 1.0 / 7;
  p = p * u2 + 1.0 / 5;
  p = p * u2 + 1.0 / 3;
  p = p * u2 + 1.0;
  return halved * kLn2 + 2.0 * u * p;
}

// Computes ln x for a normal x > 0 with an absolute error below 2^-47 for each unit of max(1, |ln x|), and 0 for 1.
static inline double log_positive(double x) {
  const uint64_t bits = f64_bits(x);
  const double exponent = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
  const double mantissa = f64_from_bits((bits & 0xfffffffffffff) | 0x3ff0000000000000);
  return exponent * kLn2 + log1p_unit(mantissa - 1.0);
}

// Computes tanh x for x >= 0 with a relative error below 2^-40.
static inline double tanh_nonnegative(double x) {
  // (1 - e) / (1 + e) loses the leading digits of small x, for which the Taylor series is used: below 2^-5, the first
  // term that is left out is a share of less than 2^-56.
  const double e = exp_nonpositive(-2.0 * x);
  const double x2 = x * x;
  double p = 62.0 / 2835;
  p = p * x2 - 17.0 / 315;
  p = p * x2 + 2.0 / 15;
  p = p * x2 - 1.0 / 3;
  p = p * x2 + 1.0;
  return x < 0.03125 ? x * p : (1.0 - e) / (1.0 + e);
}

}  // namespace mxfp4moe
