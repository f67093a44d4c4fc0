// Everything above the headers of an instruction set that computes with activations of eight bits.
// Included inside a kernel table's own namespace. The source file has renamed the mul_add of its simd.h: with this one,
// which always rounds twice, exponentials have the same bits on every instruction set.

inline F32 mul_add(F32 a, F32 b, F32 c) { return add(mul(a, b), c); }

template <class Format>
constexpr int kWeightBytes = block_layout(Format::kFormat).weight_bytes;
template <class Format>
constexpr int kScaleBytes = block_layout(Format::kFormat).scale_bytes;

#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/rows.h"
#include "kernels/generic/segments.h"
#include "kernels/generic/int8_blocks.h"
#include "kernels/generic/int8_gemm.h"
#include "kernels/generic/int8_peak.h"
#include "kernels/generic/int8_kernels.h"
