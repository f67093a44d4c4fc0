#include "capi/activation.h"

#include <limits>

namespace mxfp4moe::capi {
namespace {

constexpr double kLeast = std::numeric_limits<float>::denorm_min();  // the least float32 number above 0

}  // namespace

Activation check_activation(int32_t activation, std::optional<double> alpha, std::optional<double> limit, bool gated) {
  check_range("activation", activation, 0, kNumActivations - 1);
  const ActivationRule& rule = kActivations[activation];
  if (rule.gated != gated) {
    invalid("activation", gated ? "one for experts with a gate" : "one for experts without a gate", rule.name);
  }
  Activation result{static_cast<ActivationKind>(activation), rule.alpha, rule.limit};
  if (alpha) {
    if (rule.takes == Alpha::kNone) invalid("alpha", std::string("none with ") + rule.name, text_of(*alpha));
    check_float32("alpha", *alpha);
    if (rule.takes == Alpha::kPositive && *alpha < kLeast) invalid("alpha", "a number above 0", text_of(*alpha));
    result.alpha = static_cast<float>(*alpha);
  }
  if (limit) {
    if (!(*limit >= kLeast)) invalid("limit", "a number above 0 in float32", text_of(*limit));
    result.limit = static_cast<float>(*limit);  // infinite if float32 cannot hold it
  }
  return result;
}

ActivationFormat check_activation_format(int32_t format, bool integral) {
  check_range("activation_format", format, 0, count_of(kActivationFormatNames) - 1);
  const ActivationFormat result = static_cast<ActivationFormat>(format);
  if (result != ActivationFormat::kBFloat16 && !integral) {
    invalid("activation_format", "bfloat16, for integers are for weights in mxfp4, nvfp4, int4 and int8",
            kActivationFormatNames[format]);
  }
  return result;
}

}  // namespace mxfp4moe::capi

const char* mxfp4moe_activation_name(int32_t activation) {
  using namespace mxfp4moe;
  return activation < 0 || activation >= kNumActivations ? nullptr : kActivations[activation].name;
}
