#include "quantize/quantize.h"
#include "threads/split.h"

namespace mxfp4moe {

namespace {

// Memory limits these, so plain loops suffice, which a compiler vectorizes for any CPU; __restrict lets it do so.
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

void pack_e2m1(const uint8_t* codes, uint8_t* blocks, int64_t num_bytes, int num_threads) {
  split_units(num_bytes, 2, num_threads,
              [=](int64_t begin, int64_t end) { pack_range(codes + 2 * begin, blocks + begin, end - begin); });
}

void unpack_e2m1(const uint8_t* blocks, uint8_t* codes, int64_t num_bytes, int num_threads) {
  split_units(num_bytes, 2, num_threads,
              [=](int64_t begin, int64_t end) { unpack_range(blocks + begin, codes + 2 * begin, end - begin); });
}

}  // namespace mxfp4moe
