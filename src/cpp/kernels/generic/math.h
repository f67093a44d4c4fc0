// Exponential, hyperbolic tangent and complementary error function over sixteen lanes, for the activations.
// Included inside a kernel table's own namespace, after simd.h.

// 1.5 * 2^23: adding it leaves an integer's value in the low mantissa bits.
constexpr float kIntegerMagic = 12582912.0f;

// Computes 2^n for integers n in [-127, 127]; -127 gives 0.
inline F32 pow2(F32 n) { return from_bits(shift_left<23>(bits(add(n, broadcast(kIntegerMagic + 127.0f))))); }

// Computes e^x with a relative error below 2e-7. What is too large becomes infinity, what is too small 0, and NaN stays
// NaN.
inline F32 exp(F32 x) {
  x = max(broadcast(-104.0f), min(broadcast(100.0f), x));
  const F32 n = sub(mul_add(x, broadcast(1.44269504f), broadcast(kIntegerMagic)), broadcast(kIntegerMagic));
  // ln 2 is cut into two parts; the first has so few bits that n times it is exact.
  F32 r = mul_add(n, broadcast(-0.693359375f), x);
  r = mul_add(n, broadcast(2.12194440e-4f), r);
  // q approximates (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2 with a minimax relative error of 3e-9.
  F32 q = broadcast(1.381453999e-3f);
  q = mul_add(q, r, broadcast(8.368745246e-3f));
  q = mul_add(q, r, broadcast(4.166839080e-2f));
  q = mul_add(q, r, broadcast(1.666652040e-1f));
  q = mul_add(q, r, broadcast(4.999999343e-1f));
  const F32 p = add(broadcast(1.0f), mul_add(mul(r, r), q, r));
  // 2^n is multiplied in two factors, because 2^n alone may be out of range while the result is not.
  const F32 half = round_even(mul(n, broadcast(0.5f)));
  return mul(mul(p, pow2(half)), pow2(sub(n, half)));
}

inline F32 abs(F32 x) { return from_bits(bit_and(bits(x), broadcast_u32(0x7fffffffu))); }

// Computes tanh(x) with a relative error below 3e-7. NaN stays NaN.
inline F32 tanh(F32 x) {
  const F32 magnitude = abs(x), one = broadcast(1.0f), two = broadcast(2.0f);
  const F32 far = sub(one, div(two, add(exp(add(magnitude, magnitude)), one)));
  const F32 signed_far = from_bits(bit_or(bits(far), bit_and(bits(x), broadcast_u32(0x80000000u))));
  // That cancels near 0. q approximates (tanh x - x) / x^3 on |x| <= 5 / 8; tanh x has a minimax relative error of
  // 9e-9.
  const F32 square = mul(x, x);
  F32 q = broadcast(-5.704986764e-3f);
  q = mul_add(q, square, broadcast(2.063908703e-2f));
  q = mul_add(q, square, broadcast(-5.373971501e-2f));
  q = mul_add(q, square, broadcast(1.333144220e-1f));
  q = mul_add(q, square, broadcast(-3.333328194e-1f));
  return select_less(magnitude, broadcast(0.625f), mul_add(mul(x, square), q, x), signed_far);
}

// Computes erfc(z) for z >= 0 as e^(-z^2) t P(t) with t = 1 / (1 + 0.4 z). The minimax relative error of P is 8e-8 on
// [0, 12].
inline F32 erfc_nonnegative(F32 z) {
  const F32 t = div(broadcast(1.0f), mul_add(z, broadcast(0.4f), broadcast(1.0f)));
  F32 p = broadcast(4.415330067e-2f);
  p = mul_add(p, t, broadcast(-1.544028302e-1f));
  p = mul_add(p, t, broadcast(1.130215462e-1f));
  p = mul_add(p, t, broadcast(5.487099729e-2f));
  p = mul_add(p, t, broadcast(1.024950485e-1f));
  p = mul_add(p, t, broadcast(1.837799156e-1f));
  p = mul_add(p, t, broadcast(2.043219553e-1f));
  p = mul_add(p, t, broadcast(2.261064958e-1f));
  p = mul_add(p, t, broadcast(2.256536472e-1f));
  return mul(mul(p, t), exp(sub(broadcast(0.0f), mul(z, z))));
}
