// An operator as ONNX Runtime takes it, made of a class that computes it.
#pragma once

#include <array>
#include <memory>

#include "onnxruntime/host.h"

namespace mxfp4moe::onnx {

// Types of inputs and outputs: one of ONNX, or one of these.
constexpr auto kAnyType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
// Stands for the three types that tokens may have: float32, float16 and bfloat16. Its own value is a type that no
// argument has.
constexpr auto kTypeOfTokens = ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128;

struct Argument {
  ONNXTensorElementDataType type;
  bool is_optional = false;
};

// `Kernel` has a name, kInputs and kOutputs, is made of a node, computes calls, and infers shapes. There is an operator
// for each type of tokens, all with that name.
template <class Kernel>
struct Operator : OrtCustomOp {
  Operator(const OrtApi& host, ONNXTensorElementDataType tokens) : OrtCustomOp{}, api(host), type_of_tokens(tokens) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kInputs.size(); };
    GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::kOutputs.size(); };
    GetInputType = [](const OrtCustomOp* op, size_t i) { return of(op).resolve(Kernel::kInputs[i].type); };
    GetOutputType = [](const OrtCustomOp* op, size_t i) { return of(op).resolve(Kernel::kOutputs[i].type); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) { return characteristic(Kernel::kInputs[i]); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) { return characteristic(Kernel::kOutputs[i]); };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return std::numeric_limits<int>::max(); };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      const OrtApi& api = of(op).api;
      return guarded(api, Kernel::kName, [&] { *kernel = new Instance{api, Kernel(Node(api, info))}; });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const Instance& instance = *static_cast<const Instance*>(kernel);
      return guarded(instance.api, Kernel::kName, [&] { instance.kernel.compute(Call(instance.api, context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
      const OrtApi& api = of(op).api;
      return guarded(api, Kernel::kName, [&] { Kernel::infer_shapes(ShapeInference(api, context)); });
    };
  }

 private:
  struct Instance {
    const OrtApi& api;
    Kernel kernel;
  };

  static const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

  static OrtCustomOpInputOutputCharacteristic characteristic(const Argument& argument) {
    return argument.is_optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }

  ONNXTensorElementDataType resolve(ONNXTensorElementDataType type) const {
    return type == kTypeOfTokens ? type_of_tokens : type;
  }

  const OrtApi& api;
  const ONNXTensorElementDataType type_of_tokens;
};

}  // namespace mxfp4moe::onnx
