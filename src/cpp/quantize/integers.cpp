#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "formats/bf16.h"
#include "quantize/quantize.h"
#include "threads/split.h"

namespace mxfp4moe {

namespace {

struct Float64Value {
  static double read(const uint8_t* p) {
    double v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void write(uint8_t* p, double v) { std::memcpy(p, &v, sizeof(v)); }
};

struct Float32Value {
  static double read(const uint8_t* p) {
    float v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void write(uint8_t* p, double v) {
    const float rounded = static_cast<float>(v);
    std::memcpy(p, &rounded, sizeof(rounded));
  }
};

// Returns `exact` as a float32 that is rounded to 16 bits as the exact number would be: where it is not exact its last
// bit is 1, so that it lies on the same side of every 16-bit value, and of every midpoint of two.
float round_to_odd(double exact) {
  const float nearest = static_cast<float>(exact);
  const double back = nearest;
  const uint32_t bits = f32_bits(nearest);
  if (bits % 2 != 0 || back == exact || std::isnan(exact)) return nearest;
  return f32_from_bits(std::fabs(exact) > std::fabs(back) ? bits + 1 : bits - 1);
}

template <float (*kToF32)(uint16_t), uint16_t (*kFromF32)(float)>
struct HalfValue {
  static double read(const uint8_t* p) {
    uint16_t v;
    std::memcpy(&v, p, sizeof(v));
    return kToF32(v);
  }
  static void write(uint8_t* p, double v) {
    const uint16_t rounded = kFromF32(round_to_odd(v));
    std::memcpy(p, &rounded, sizeof(rounded));
  }
};

// Calls f(Value{}) with the type of the values.
template <class F>
void with_value(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64: return f(Float64Value{});
    case DType::kFloat32: return f(Float32Value{});
    case DType::kFloat16: return f(HalfValue<f16_to_f32, f32_to_f16>{});
    case DType::kBFloat16: return f(HalfValue<bf16_to_f32, f32_to_bf16>{});
  }
}

// Rounds to the nearest integer, ties to even, |v| < 2^51.
double round_even(double v) { return (v + 0x1.8p52) - 0x1.8p52; }

// Returns the least bfloat16 number that is not below `exact`, which is positive and at most the largest one.
float bf16_above(double exact) {
  const float nearest = static_cast<float>(exact);
  const uint32_t bits = f32_bits(nearest) + (static_cast<double>(nearest) < exact ? 1 : 0);
  return f32_from_bits((bits + 0xffffu) & 0xffff0000u);
}

// The least and the largest value of a group, or zero if that is less or larger.
struct Span {
  double low = 0, high = 0;
  bool finite = true;

  void include(double v) {
    low = v < low ? v : low;
    high = v > high ? v : high;
    finite &= std::fabs(v) <= std::numeric_limits<double>::max();
  }
};

template <class Value>
Span span_of(const uint8_t* values, int64_t count, int64_t bytes) {
  constexpr int kSpans = 4;  // so that no comparison waits for the one before
  Span spans[kSpans];
  int64_t i = 0;
  for (; i + kSpans <= count; i += kSpans) {
    for (int s = 0; s < kSpans; ++s) spans[s].include(Value::read(values + (i + s) * bytes));
  }
  for (; i < count; ++i) spans[0].include(Value::read(values + i * bytes));
  Span all;
  for (const Span& s : spans) all = {std::min(all.low, s.low), std::max(all.high, s.high), all.finite && s.finite};
  return all;
}

// The bytes of codes of a group.
int64_t code_bytes(const IntegerGroups& groups) { return groups.group_size * groups.bits / 8; }

template <class Value>
void quantize_group(const IntegerGroups& groups, int64_t group, const IntegerArrays& to) {
  const int64_t size = groups.group_size, bytes = value_bytes(groups.dtype);
  const uint8_t* values = groups.values + group * size * bytes;
  Span span = span_of<Value>(values, size, bytes);
  const bool finite = span.finite;
  if (!finite) span = {};
  const double top = (1 << groups.bits) - 1, middle = 1 << (groups.bits - 1);
  const double spread = to.zeros == nullptr ? 2 * std::max(-span.low, span.high) : span.high - span.low;
  float scale = 1.0f;
  if (spread != 0) {
    const double lowest = std::numeric_limits<float>::min(), highest = bf16_to_f32(0x7f7f);
    scale = bf16_above(std::clamp(spread / top, lowest, highest));
  }
  // float64 may overflow where its values are beyond float32's; a quotient that large is clamped all the same.
  const double zero = to.zeros == nullptr ? middle : std::clamp(round_even(-span.low / scale), 0.0, top);
  // Codes of eight bits are signed.
  const uint8_t sign = groups.bits == 8 ? 0x80 : 0;
  const auto code_of = [&](int64_t i) {
    const double v = finite ? Value::read(values + i * bytes) : 0.0;
    const double quotient = std::clamp(v / scale, -2 * top, 2 * top);
    return static_cast<uint8_t>(static_cast<int>(std::clamp(round_even(quotient) + zero, 0.0, top)) ^ sign);
  };
  uint8_t* codes = to.codes + group * code_bytes(groups);
  if (groups.bits == 8) {
    for (int64_t i = 0; i < size; ++i) codes[i] = code_of(i);
  } else {
    for (int64_t i = 0; i < size; i += 2) codes[i / 2] = static_cast<uint8_t>(code_of(i) | code_of(i + 1) << 4);
  }
  to.scales[group] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
  if (to.zeros != nullptr) to.zeros[group] = static_cast<uint8_t>(static_cast<int>(zero) ^ sign);
}

}  // namespace

void quantize_integers(const IntegerGroups& groups, const IntegerArrays& to, int num_threads) {
  with_value(groups.dtype, [&](auto value) {
    using Value = decltype(value);
    split_units(groups.num_groups, groups.group_size, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) quantize_group<Value>(groups, group, to);
    });
  });
}

void dequantize_integers(const IntegerGroups& groups, const IntegerArrays& from, uint8_t* values, int num_threads) {
  with_value(groups.dtype, [&](auto value) {
    using Value = decltype(value);
    const int64_t size = groups.group_size, bytes = value_bytes(groups.dtype);
    split_units(groups.num_groups, size, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        const uint8_t* codes = from.codes + group * code_bytes(groups);
        const double scale = from.scales[group];
        uint8_t* out = values + group * size * bytes;
        if (groups.bits == 8) {
          const int zero = from.zeros == nullptr ? 0 : static_cast<int8_t>(from.zeros[group]);
          for (int64_t i = 0; i < size; ++i) {
            Value::write(out + i * bytes, (static_cast<int8_t>(codes[i]) - zero) * scale);
          }
        } else {
          const int zero = from.zeros == nullptr ? 8 : from.zeros[group];
          for (int64_t i = 0; i < size; ++i) {
            Value::write(out + i * bytes, ((codes[i / 2] >> (i % 2 * 4) & 15) - zero) * scale);
          }
        }
      }
    });
  });
}

}  // namespace mxfp4moe
