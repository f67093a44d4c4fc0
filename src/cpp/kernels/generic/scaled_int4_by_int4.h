// Scaled integers of four bits by way of integers. Included inside a kernel table's own namespace, after the headers of
// an instruction set that has no faster way.

template <class ScaleOf, class AddendOf, class F>
MXFP4MOE_INLINE void each_scaled_int4(const uint8_t* quad, ScaleOf&& scale_of, AddendOf&& addend_of, F&& f) {
  const auto zero_of = [](auto) MXFP4MOE_INLINE_LAMBDA { return kCheapestInt4Zero; };
  each_int4(quad, zero_of, [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
    f(row, part, scale_and_add(vec, scale_of(row), addend_of(row)));
  });
}
