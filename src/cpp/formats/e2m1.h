// E2M1, the 4-bit element of MXFP4: code = sign << 3 | index of the magnitude. Two codes a byte, even k in the
// low nibble. `static`, as in bf16.h: each kernel table keeps a copy of its own.
#pragma once

#include <cstdint>

namespace mxfp4moe {

constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

static inline float e2m1_to_f32(uint8_t code) { return kE2m1Values[code & 15]; }

// Rounding a magnitude v >= 0 to the nearest code, ties to the even code, saturating. Index over value is
// linear between 0 and 2, 2 and 4, 4 and 6, and concave, so it is the least of the three lines
//   2 v,  v + 2,  v / 2 + 4,  and at most 7.
// Each line is rounded to an integer by the addition of a number whose last mantissa bit is 1; this is the only
// rounding, because the products are exact, and rounding is monotonic, so the least may be taken afterwards.
// The index is then in the low bits of the sum. kernels/generic/quantize.h does the same on vectors.
constexpr float kE2m1RoundF32 = 8388608.0f;           // 2^23
constexpr double kE2m1RoundF64 = 4503599627370496.0;  // 2^52

}  // namespace mxfp4moe
