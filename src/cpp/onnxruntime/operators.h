// The operators of the domain mxfp4moe.
#pragma once

#include <array>

#include "onnxruntime/operator.h"
#include "onnxruntime/threads.h"

namespace mxfp4moe::onnx {

constexpr Argument kTokens{kTypeOfTokens};
constexpr Argument kWeights{kAnyType, true};

class FusedExperts {
 public:
  static constexpr const char* kName = "FusedExperts";
  static constexpr std::array kInputs{kTokens,
                                      Argument{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                                      Argument{kAnyType},
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights,
                                      kWeights};
  static constexpr std::array kOutputs{kTokens};

  explicit FusedExperts(const Node& node);
  void compute(const Call& call) const;
  static void infer_shapes(const ShapeInference& shapes);

 private:
  Threads threads_;
  Experts experts_;
  int64_t num_experts_, hidden_size_;
  mxfp4moe_fused_experts_args args_;
};

class Linears {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr std::array kInputs{kTokens, kWeights, kWeights, kWeights, kWeights, kWeights};
  static constexpr std::array kOutputs{kTokens};

  explicit Linears(const Node& node);
  void compute(const Call& call) const;
  static void infer_shapes(const ShapeInference& shapes);

 private:
  Threads threads_;
  Linear linear_;
  int64_t num_rows_, num_columns_;
};

class Layers {
 public:
  static constexpr const char* kName = "MoELayer";
  static constexpr std::array kInputs{kTokens, Argument{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, true},
                                      Argument{kAnyType, true}};
  static constexpr std::array kOutputs{kTokens};

  explicit Layers(const Node& node);
  void compute(const Call& call) const;
  static void infer_shapes(const ShapeInference& shapes);

 private:
  Threads threads_;
  Layer layer_;
  mxfp4moe_layer_info info_;
  int32_t propagate_nonfinite_;
};

class QuantizeMxfp4 {
 public:
  static constexpr const char* kName = "QuantizeMXFP4";
  static constexpr std::array kInputs{kTokens};
  static constexpr std::array kOutputs{Argument{ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                                       Argument{ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8}};

  explicit QuantizeMxfp4(const Node& node);
  void compute(const Call& call) const;
  static void infer_shapes(const ShapeInference& shapes);

 private:
  Threads threads_;
  int32_t scale_rule_;
  int32_t nonfinite_is_nan_;
};

}  // namespace mxfp4moe::onnx
