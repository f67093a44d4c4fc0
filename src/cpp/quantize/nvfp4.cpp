#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "quantize/float_scale.h"
#include "quantize/quantize.h"
#include "threads/split.h"

namespace mxfp4moe {

namespace {
constexpr int64_t kBlock = 16;
constexpr int64_t kBlockBytes = kBlock / 2;
}  // namespace

void quantize_nvfp4(const KernelTable& kernels, const Nvfp4Args& args, int64_t num_tensors, float* tensor_scales,
                    bool has_scales, int num_threads) {
  const int64_t values_per_tensor = args.num_blocks * kBlock;
  split_parts(num_tensors, values_per_tensor, num_threads, [&](int64_t tensor, int threads) {
    const int64_t first = tensor * args.num_blocks;
    const uint8_t* values = args.values + first * kBlock * value_bytes(args.dtype);
    if (!has_scales) {
      // The tensor is seen as rows of one block each, so that the threads can share any tensor.
      const ScaleBlockArgs whole = {values, args.dtype, args.num_blocks, kBlock, kBlock};
      const double amax = amax_of(kernels, whole, true, threads);
      tensor_scales[tensor] = float_scale(amax, E4m3Element::kMax * E2m1Element::kMax);
    }
    split_units(args.num_blocks, kBlock, threads, [&](int64_t begin, int64_t end) {
      Nvfp4Args part = args;
      part.values = values + begin * kBlock * value_bytes(args.dtype);
      part.blocks += (first + begin) * kBlockBytes;
      part.scales += first + begin;
      part.tensor_scale = tensor_scales[tensor];
      part.num_blocks = end - begin;
      kernels.quantize.quantize_nvfp4(part);
    });
  });
}

void dequantize_nvfp4(const KernelTable& kernels, const Nvfp4ValuesArgs& args, int64_t num_tensors,
                      const float* tensor_scales, int num_threads) {
  split_parts(num_tensors, args.num_blocks * kBlock, num_threads, [&](int64_t tensor, int threads) {
    split_units(args.num_blocks, kBlock, threads, [&](int64_t begin, int64_t end) {
      const int64_t block = tensor * args.num_blocks + begin;
      Nvfp4ValuesArgs part = args;
      part.blocks += block * kBlockBytes;
      part.scales += block;
      part.tensor_scale = tensor_scales[tensor];
      part.values += block * kBlock * value_bytes(args.dtype);
      part.num_blocks = end - begin;
      kernels.quantize.dequantize_nvfp4(part);
    });
  });
}

}  // namespace mxfp4moe
