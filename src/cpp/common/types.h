// Small vocabulary shared by every part of the library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mxfp4moe {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

enum class WeightFormat : int32_t { kMxfp4, kNvfp4, kMxfp8E4m3, kMxfp8E5m2, kFp8Block, kBf16 };
constexpr int kNumWeightFormats = 6;

enum class ScaleRule : int32_t { kFloor, kCeil, kRceil, kEven };

enum class ActivationKind : int32_t { kSilu, kSwigluOai, kGelu, kGeluTanh };

// Gate is clamped from above and up on both sides to `limit` (infinity: not at all), then `kind` is applied.
struct Activation {
  ActivationKind kind;
  float alpha;
  float limit;
};

// A panel is 16 output rows by all of K; a K-block is 32 consecutive k. See packing/panels.h for the layout.
constexpr int kPanelRows = 16;
constexpr int kBlockK = 32;

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
