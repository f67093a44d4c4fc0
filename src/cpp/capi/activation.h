// The activation between the two matrices of an expert, and what it is rounded to, checked. src/mxfp4moe/experts has
// the definitions, activation.py and activation_format.py.
#pragma once

#include <optional>

#include "capi/arguments.h"
#include "packing/storage.h"

namespace mxfp4moe::capi {

// Where alpha or limit is not given, that of the activation is taken.
Activation check_activation(int32_t activation, std::optional<double> alpha, std::optional<double> limit, bool gated);

// Whether activations of eight bits are for such weights, which are integers times scales.
constexpr bool is_integral(WeightFormat format) {
  return format == WeightFormat::kMxfp4 || format == WeightFormat::kNvfp4 || is_integer(format);
}
inline bool is_integral(const PackedLayer& layer) {
  return is_integral(layer.w13.format) && is_integral(layer.w2.format);
}

// What hidden states are rounded to, checked; `integral` says whether the weights allow integers.
ActivationFormat check_activation_format(int32_t format, bool integral);

}  // namespace mxfp4moe::capi
