#include "quantize/quantize.h"

#include <algorithm>

#include "kernels/kernel_table.h"
#include "threads/pool.h"

namespace mxfp4moe {

namespace {

constexpr int64_t kBlockBytes = kBlockK / 2;

// Blocks that are worth a thread of their own: 64 KiB of float32, some 10 us of work.
constexpr int64_t kMinBlocksPerThread = 512;

int64_t value_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    default: return 2;
  }
}

// Calls run(begin, end) for an even split of [0, num_blocks) over the threads.
template <class Run>
void split_blocks(int64_t num_blocks, int num_threads, const Run& run) {
  struct Split {
    int64_t num_blocks;
    const Run& run;
  } split{num_blocks, run};
  const int64_t useful = std::max<int64_t>(1, num_blocks / kMinBlocksPerThread);
  parallel_run(
      static_cast<int>(std::min<int64_t>(num_threads, useful)),
      [](void* context, int thread, int threads) {
        const Split& s = *static_cast<const Split*>(context);
        const int64_t share = ceil_div(s.num_blocks, threads);
        const int64_t begin = std::min(s.num_blocks, thread * share);
        const int64_t end = std::min(s.num_blocks, begin + share);
        if (begin < end) s.run(begin, end);
      },
      &split);
}

// Limited by memory, so plain loops that a compiler vectorizes for any CPU suffice; __restrict lets it.
void pack_range(const uint8_t* __restrict codes, uint8_t* __restrict blocks, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; ++i) {
    blocks[i] = static_cast<uint8_t>((codes[2 * i] & 15) | codes[2 * i + 1] << 4);
  }
}

void unpack_range(const uint8_t* __restrict blocks, uint8_t* __restrict codes, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; ++i) {
    codes[2 * i] = blocks[i] & 15;
    codes[2 * i + 1] = blocks[i] >> 4;
  }
}

}  // namespace

void quantize_mxfp4(const KernelTable& kernels, const QuantizeArgs& args, int num_threads) {
  split_blocks(args.num_blocks, num_threads, [&](int64_t begin, int64_t end) {
    QuantizeArgs part = args;
    part.values += begin * kBlockK * value_bytes(args.dtype);
    part.blocks += begin * kBlockBytes;
    part.scales += begin;
    part.num_blocks = end - begin;
    kernels.quantize.quantize_mxfp4(part);
  });
}

void dequantize_mxfp4(const KernelTable& kernels, const DequantizeArgs& args, int num_threads) {
  split_blocks(args.num_blocks, num_threads, [&](int64_t begin, int64_t end) {
    DequantizeArgs part = args;
    part.blocks += begin * kBlockBytes;
    part.scales += begin;
    part.values += begin * kBlockK * value_bytes(args.dtype);
    part.num_blocks = end - begin;
    kernels.quantize.dequantize_mxfp4(part);
  });
}

void pack_e2m1(const uint8_t* codes, uint8_t* blocks, int64_t num_bytes, int num_threads) {
  split_blocks(ceil_div(num_bytes, kBlockBytes), num_threads, [=](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlockBytes;
    pack_range(codes + 2 * first, blocks + first, std::min(num_bytes, end * kBlockBytes) - first);
  });
}

void unpack_e2m1(const uint8_t* blocks, uint8_t* codes, int64_t num_bytes, int num_threads) {
  split_blocks(ceil_div(num_bytes, kBlockBytes), num_threads, [=](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlockBytes;
    unpack_range(blocks + first, codes + 2 * first, std::min(num_bytes, end * kBlockBytes) - first);
  });
}

}  // namespace mxfp4moe
