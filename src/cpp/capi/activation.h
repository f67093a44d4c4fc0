// The activation between the two matrices of an expert, checked. src/mxfp4moe/experts/activation.py is the definition.
#pragma once

#include <optional>

#include "capi/arguments.h"

namespace mxfp4moe::capi {

// Without alpha or limit, those of the activation.
Activation check_activation(int32_t activation, std::optional<double> alpha, std::optional<double> limit, bool gated);

}  // namespace mxfp4moe::capi
