// Packed weights of a node: those of a file that an attribute names, or initializers, packed once.
#pragma once

#include "onnxruntime/host.h"

namespace mxfp4moe::onnx {

// Initializers are the inputs from `first_input` on, in the order of pack_experts and pack_linear.
Experts experts_of(const Node& node, size_t first_input, const mxfp4moe_options& options);
Linear linear_of(const Node& node, size_t first_input, const mxfp4moe_options& options);

}  // namespace mxfp4moe::onnx
