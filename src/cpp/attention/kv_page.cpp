#include "attention/kv_page.h"

#include <cstring>

#include "formats/bf16.h"
#include "threads/split.h"

namespace mxfp4moe {
namespace {

void put(float* to, float value) { *to = value; }
void put(uint16_t* to, float value) { *to = f32_to_bf16(value); }

template <class Element>
void fill_head(const KVLayout& layout, const float* key, const float* value, int64_t place, uint8_t* head) {
  const int64_t dim = layout.head_dim;
  Element* keys = reinterpret_cast<Element*>(head) + place / kAttentionLanes * dim * kAttentionLanes;
  Element* values = reinterpret_cast<Element*>(head + keys_bytes(layout)) + place * padded_dim(layout);
  for (int64_t d = 0; d < dim; ++d) put(keys + d * kAttentionLanes + place % kAttentionLanes, key[d]);
  for (int64_t d = 0; d < dim; ++d) put(values + d, value[d]);
}

}  // namespace

void fill_pages(const KVLayout& layout, const NewPositions& tokens, uint8_t* const* pages, int num_threads) {
  const int64_t heads = layout.num_kv_heads, token_floats = heads * layout.head_dim;
  const int64_t start = tokens.position % kBlockPositions;
  split_units(tokens.num_tokens, 2 * token_floats, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t at = start + t;
      uint8_t* page = pages[at / kBlockPositions];
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t from = t * token_floats + h * layout.head_dim;
        uint8_t* head = page + h * kv_head_bytes(layout);
        const auto fill = layout.dtype == DType::kFloat32 ? fill_head<float> : fill_head<uint16_t>;
        fill(layout, tokens.keys + from, tokens.values + from, at % kBlockPositions, head);
      }
    }
  });
}

}  // namespace mxfp4moe
