#include "quantize/quantize.h"
#include "threads/split.h"

namespace mxfp4moe {

namespace {
constexpr int64_t code_bytes(MxElement element) { return element == MxElement::kE2m1 ? kBlockK / 2 : kBlockK; }
}  // namespace

void quantize_mx(const KernelTable& kernels, const MxArgs& args, int num_threads) {
  split_units(args.num_blocks, kBlockK, num_threads, [&](int64_t begin, int64_t end) {
    MxArgs part = args;
    part.values += begin * kBlockK * value_bytes(args.dtype);
    part.codes += begin * code_bytes(args.element);
    part.scales += begin;
    part.num_blocks = end - begin;
    kernels.quantize.quantize_mx(part);
  });
}

void dequantize_mx(const KernelTable& kernels, const MxValuesArgs& args, int num_threads) {
  split_units(args.num_blocks, kBlockK, num_threads, [&](int64_t begin, int64_t end) {
    MxValuesArgs part = args;
    part.codes += begin * code_bytes(args.element);
    part.scales += begin;
    part.values += begin * kBlockK * value_bytes(args.dtype);
    part.num_blocks = end - begin;
    kernels.quantize.dequantize_mx(part);
  });
}

}  // namespace mxfp4moe
