// The small vocabulary that every part of the library shares.
//
// The names beside an enumeration are those of the Python package, in the order of the values; the binding reads them
// (`_core.ACTIVATIONS` and its like), so that a number stands nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>

namespace mxfp4moe {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };
constexpr const char* kDTypeNames[] = {"float32", "float16", "bfloat16", "float64"};
constexpr int64_t value_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// The integer formats are three each: without and with zero points, and with offsets.
enum class WeightFormat : int32_t {
  kMxfp4,
  kNvfp4,
  kMxfp8E4m3,
  kMxfp8E5m2,
  kFp8Block,
  kBf16,
  kInt4,
  kInt4Zeros,
  kInt8,
  kInt8Zeros,
  kInt4Offsets,
  kInt8Offsets,
};
constexpr const char* kWeightFormatNames[] = {"mxfp4",     "nvfp4",      "mxfp8-e4m3",   "mxfp8-e5m2",
                                              "fp8_block", "bf16",       "int4",         "int4-zeros",
                                              "int8",      "int8-zeros", "int4-offsets", "int8-offsets"};

// What hidden states and intermediates are rounded to.
enum class ActivationFormat : int32_t { kBFloat16, kInt8 };
constexpr const char* kActivationFormatNames[] = {"bfloat16", "int8"};

enum class MxElement : int32_t { kE2m1, kE4m3, kE5m2 };
constexpr const char* kMxElementNames[] = {"e2m1", "e4m3", "e5m2"};

// How the scale of an MX block follows from its largest magnitude; formats/element.h defines the rules.
enum class ScaleRule : int32_t { kFloor, kCeil, kRceil, kEven };
constexpr const char* kScaleRuleNames[] = {"floor", "ceil", "rceil", "even"};

enum class ActivationKind : int32_t { kSilu, kSwigluOai, kGelu, kGeluTanh, kSiluClamp, kSitu, kRelu2 };
enum class Alpha : int32_t { kNone, kAny, kPositive };

// What is to be known of an activation beside its formula, in the order of the enumeration: its name, whether experts
// that it is for have a gate, which alpha it takes, and its parameters where a call gives none.
struct ActivationRule {
  const char* name;
  bool gated = true;
  Alpha takes = Alpha::kNone;
  float alpha = 0;
  float limit = std::numeric_limits<float>::infinity();
};
constexpr ActivationRule kActivations[] = {
    {"silu"},       {"swigluoai", true, Alpha::kAny, 1.702f, 7.0f}, {"gelu"},        {"gelu_tanh"},
    {"silu_clamp"}, {"situ", true, Alpha::kPositive, 4.0f, 25.0f},  {"relu2", false}};
constexpr int kNumActivations = static_cast<int>(std::size(kActivations));

template <size_t N>
constexpr int count_of(const char* const (&)[N]) {
  return static_cast<int>(N);
}
constexpr int kNumWeightFormats = count_of(kWeightFormatNames);

// kernels/generic/activation.h says what each kind makes of the parameters; an infinite limit clamps nothing.
struct Activation {
  ActivationKind kind;
  float alpha;
  float limit;
};

// A panel is 16 output rows by all of K, and a K-block is 32 consecutive k; packing/panels.h describes the layout.
constexpr int kPanelRows = 16;
constexpr int kBlockK = 32;

// So many tokens are packed together, and a tile kernel computes so many at once. Groups of tokens are cut at its
// multiples, so that only the last tile of a group is not full.
constexpr int kTokenTile = 16;

// Rows of values in memory; the values of a row are consecutive.
struct Rows {
  uint8_t* data;
  int64_t stride;  // bytes from one row to the next
  DType dtype;
};

enum class Status { kOk, kOutOfMemory };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace mxfp4moe
