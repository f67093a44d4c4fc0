// What src/mxfp4moe/jax/_ffi.py calls, to give weights their numbers.
#include <cstring>
#include <vector>

#include "capi/given_layer.h"
#include "jax/weights_table.h"

using namespace mxfp4moe;
using namespace mxfp4moe::jax;

namespace {

// Makes a PackedLayer from its bytes, which the Python extension of the same version wrote.
PackedLayer layer_of(const void* bytes) {
  PackedLayer layer;
  std::memcpy(&layer, bytes, sizeof(layer));
  return layer;
}

}  // namespace

extern "C" {

MXFP4MOE_API void mxfp4moe_jax_hold_experts(int64_t number, const void* experts) {
  Weights weights;
  weights.experts = layer_of(experts);
  table().hold(number, weights);
}

// `description` is a packed file without the weights of experts; `shared` may be null. Returns a status of the C
// library.
MXFP4MOE_API int32_t mxfp4moe_jax_hold_layer(int64_t number, const uint8_t* description, int64_t num_bytes,
                                             const void* experts, const void* shared, int32_t gated) {
  std::vector<capi::GivenExperts> given{{"experts", gated != 0, layer_of(experts)}};
  if (shared != nullptr) given.push_back({"shared_experts", gated != 0, layer_of(shared)});
  Weights weights;
  const mxfp4moe_status status = capi::make_layer(description, num_bytes, given, &weights.layer);
  if (status == MXFP4MOE_OK) table().hold(number, weights);
  return status;
}

MXFP4MOE_API void mxfp4moe_jax_release(int64_t number) { table().release(number); }
}
