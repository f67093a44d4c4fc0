// Vectors and accumulators of sixteen lanes. Included inside a kernel table's own namespace, after dot_*.h.

// Loads a vector that is used several times.
MXFP4MOE_INLINE Vec load_vec_once(const Element* p) { return in_register(load_vec(p)); }
MXFP4MOE_INLINE Acc zero_acc() { return _mm512_setzero_ps(); }
MXFP4MOE_INLINE Acc load_acc(const float* p) { return _mm512_loadu_ps(p); }
MXFP4MOE_INLINE void store_acc(float* p, Acc a) { _mm512_storeu_ps(p, a); }
MXFP4MOE_INLINE Acc add_scaled(Acc sum, Acc acc, float scale) {
  return _mm512_fmadd_ps(acc, _mm512_set1_ps(scale), sum);
}
template <int kFactor>
MXFP4MOE_INLINE Acc scale_acc(Acc acc) {
  return kFactor == 1 ? acc : _mm512_mul_ps(acc, _mm512_set1_ps(kFactor));
}

// Sums the lanes of each of sixteen accumulators in four rounds. Each round adds the halves of vectors, so that there
// are half as many vectors afterwards.
inline F32 sum_lanes(const float* p) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 x = load_acc(p + 32 * i), y = load_acc(p + 32 * i + 16);
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  for (int i = 0; i < 2; ++i) {
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}
