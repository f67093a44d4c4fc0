#include "capi/layer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "formats/bf16.h"
#include "linear/rms_norm.h"
#include "routing/scores.h"

namespace mxfp4moe::capi {
namespace {

constexpr int64_t kSumBytes = 32 << 20;  // the most that float32 sums take while they wait for those of a shared expert

Rows rows_of(std::vector<float>& values, int64_t columns) {
  return {reinterpret_cast<uint8_t*>(values.data()), 4 * columns, DType::kFloat32};
}

Rows skip_rows(Rows rows, int64_t count) {
  rows.data += count * rows.stride;
  return rows;
}

float value_at(const Rows& rows, int64_t row, int64_t column) {
  const uint8_t* const data = rows.data + row * rows.stride;
  if (rows.dtype == DType::kFloat32) return reinterpret_cast<const float*>(data)[column];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[column];
  return rows.dtype == DType::kBFloat16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

void store(const Rows& rows, int64_t row, int64_t column, float value) {
  uint8_t* const data = rows.data + row * rows.stride;
  if (rows.dtype == DType::kFloat32) {
    reinterpret_cast<float*>(data)[column] = value;
  } else {
    reinterpret_cast<uint16_t*>(data)[column] = rows.dtype == DType::kBFloat16 ? f32_to_bf16(value) : f32_to_f16(value);
  }
}

float rounded_at(const Rows& rows, int64_t row, int64_t column) {
  return bf16_to_f32(f32_to_bf16(value_at(rows, row, column)));
}

// Finds a hidden state that is not finite in bfloat16.
bool has_nonfinite(const Rows& rows, int64_t row, int64_t columns) {
  for (int64_t i = 0; i < columns; ++i) {
    if (!std::isfinite(rounded_at(rows, row, i))) return true;
  }
  return false;
}

// 1 / sqrt(mean square + epsilon) of each row, in float64 and rounded once.
std::vector<float> rms_factors(const Rows& rows, int64_t num_rows, int64_t columns, double epsilon, int num_threads) {
  std::vector<double> means(static_cast<size_t>(num_rows));
  mean_squares(rows, num_rows, columns, means.data(), num_threads);
  std::vector<float> factors;
  for (double mean : means) factors.push_back(static_cast<float>(1 / std::sqrt(mean + epsilon)));
  return factors;
}

MoeProblem problem_of(const Rows& rows, const Rows& out, const float* weights, const int32_t* ids, int64_t num_tokens,
                      int64_t top_k) {
  MoeProblem problem{};
  problem.hidden_states = rows;
  problem.out = out;
  problem.topk_weights = weights;
  problem.local_ids = ids;
  problem.num_tokens = num_tokens;
  problem.top_k = top_k;
  problem.combine = true;
  return problem;
}

}  // namespace

// The float32 sums of some tokens.
struct Layer::Sums {
  int64_t num_tokens;
  int64_t per_token;  // slots
  std::vector<float> total;
  std::vector<float> term;
};

std::vector<float> Layer::logits(const Call& call, const Rows& rows, int64_t num_tokens) const {
  std::vector<float> result(static_cast<size_t>(num_tokens * num_choices_));
  const Rows out = rows_of(result, num_choices_);
  if (!router_epsilon_) {
    router_.compute(call, {rows, out, num_tokens});
    return result;
  }
  // The factor of the norm multiplies the sums, so that what the router reads is rounded but once.
  std::vector<uint16_t> rounded(static_cast<size_t>(num_tokens * hidden_size_));
  const Rows read{reinterpret_cast<uint8_t*>(rounded.data()), 2 * hidden_size_, DType::kBFloat16};
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t i = 0; i < hidden_size_; ++i) store(read, token, i, value_at(rows, token, i));
  }
  router_.compute(call, {read, out, num_tokens});
  const std::vector<float> factors = rms_factors(read, num_tokens, hidden_size_, *router_epsilon_, call.num_threads());
  for (size_t i = 0; i < result.size(); ++i) {
    const size_t choices = static_cast<size_t>(num_choices_);
    result[i] *= factors[i / choices];
    if (!router_bias_.empty()) result[i] += router_bias_[i % choices];
  }
  return result;
}

Slots Layer::route(const Call& call, const Input& input) const {
  std::vector<float> values = logits(call, input.router, input.num_tokens);
  Slots slots{};
  slots.per_token = routing_.num_slots();
  const size_t count = static_cast<size_t>(input.num_tokens * slots.per_token);
  slots.weights.resize(count);
  slots.ids.resize(count);
  const char* const name = has_router_input_ ? "router_hidden_states" : "hidden_states";
  std::vector<int64_t> ids;
  for (int64_t token = 0; token < input.num_tokens; ++token) {
    float* const row = values.data() + token * num_choices_;
    const auto is_finite = [](float logit) { return std::isfinite(logit); };
    const bool all_finite = std::all_of(row, row + num_choices_, is_finite);
    const bool some_below = std::any_of(row, row + num_choices_, [](float logit) { return logit > -INFINITY; });
    const bool unroutable =
        !some_below || std::any_of(row, row + num_choices_, [](float x) { return !(x < INFINITY); });
    // NaN or infinity times the weights of a router leaves no logit finite.
    bool wrong = (!all_finite && has_nonfinite(input.router, token, hidden_size_));
    if (input.propagate_nonfinite) wrong |= unroutable;
    const bool wrong_hidden = has_router_input_ && has_nonfinite(input.hidden, token, hidden_size_);
    if (!wrong && !wrong_hidden) continue;
    if (!input.propagate_nonfinite) {
      invalid(wrong ? name : "hidden_states", "values that are finite in bfloat16", "others in row " + text_of(token));
    }
    slots.nonfinite.resize(static_cast<size_t>(input.num_tokens));
    slots.nonfinite[static_cast<size_t>(token)] = true;
    std::fill(row, row + num_choices_, 0.0f);
  }
  const int64_t* input_ids = input.input_ids;
  if (routes_by_ids() && !slots.nonfinite.empty()) {
    ids.assign(input_ids, input_ids + input.num_tokens);
    for (size_t token = 0; token < ids.size(); ++token) {
      if (slots.nonfinite[token]) ids[token] = 0;
    }
    input_ids = ids.data();
  }
  routing_.choose(values.data(), input_ids, input.num_tokens, slots.weights.data(), slots.ids.data(),
                  call.num_threads());
  for (size_t i = 0; i < count && !slots.nonfinite.empty(); ++i) {
    if (!slots.nonfinite[i / static_cast<size_t>(slots.per_token)]) continue;
    slots.weights[i] = std::numeric_limits<float>::quiet_NaN();
    slots.ids[i] = -1;
  }
  return slots;
}

// Where the experts of slots are among those that are here, -1 if they are not.
std::vector<int32_t> Layer::places(const int32_t* ids, size_t count) const {
  std::vector<int32_t> result(ids, ids + count);
  for (int32_t& id : result) {
    if (id >= num_experts()) id = -1;
    if (is_part() && id >= 0) id = expert_map_[static_cast<size_t>(id)];
  }
  return result;
}

void Layer::add_up(const Call& call, const Input& input, const Slots& slots, const Rows& out) const {
  if (is_part() && !latent_norm_.empty()) {
    invalid("layer", "the whole one, for latent_norm is of the sum over all experts", "a slice");
  }
  const bool alone =
      num_zero_experts_ == 0 && factor_ == 1 && !down_ && (is_part() || (!shared_ && output_bias_.empty()));
  if (alone) {
    const std::vector<int32_t> local = is_part() ? places(slots.ids.data(), slots.ids.size()) : std::vector<int32_t>();
    MoeProblem problem = problem_of(input.hidden, out, slots.weights.data(),
                                    is_part() ? local.data() : slots.ids.data(), input.num_tokens, slots.per_token);
    problem.activation = activation_;
    problem.apply_router_weight_on_input = weight_on_input_;
    experts_.compute(call, format_, problem);
  }
  // Some tokens at a time: the float32 sums of all would be much memory.
  const int64_t step = std::max<int64_t>(1, kSumBytes / (4 * hidden_size_));
  for (int64_t first = 0; first < input.num_tokens && !alone; first += step) {
    Sums sums{std::min(step, input.num_tokens - first), slots.per_token, {}, {}};
    add_up_some(call, skip_rows(input.hidden, first), slots, first, &sums);
    for (int64_t token = 0; token < sums.num_tokens; ++token) {
      for (int64_t i = 0; i < hidden_size_; ++i) {
        store(out, first + token, i, sums.total[static_cast<size_t>(token * hidden_size_ + i)]);
      }
    }
  }
  for (size_t token = 0; token < slots.nonfinite.size(); ++token) {
    for (int64_t i = 0; i < hidden_size_ && slots.nonfinite[token]; ++i) {
      store(out, static_cast<int64_t>(token), i, std::numeric_limits<float>::quiet_NaN());
    }
  }
}

void Layer::add_up_some(const Call& call, const Rows& rows, const Slots& slots, int64_t first, Sums* sums) const {
  const size_t begin = static_cast<size_t>(first * slots.per_token);
  const size_t count = static_cast<size_t>(sums->num_tokens * slots.per_token);
  const float* const weights = slots.weights.data() + begin;
  const int32_t* const ids = slots.ids.data() + begin;
  add_routed(call, rows, weights, num_zero_experts_ > 0 || is_part() ? places(ids, count).data() : ids, sums);
  if (num_zero_experts_ > 0 && !is_part()) {
    // Experts that give the token itself: their weights are added from slot to slot.
    std::vector<float> zero_weights(static_cast<size_t>(sums->num_tokens));
    for (size_t i = 0; i < count; ++i) {
      const size_t per_token = static_cast<size_t>(slots.per_token);
      const float weight = ids[i] >= num_experts() ? weights[i] : 0.0f;
      zero_weights[i / per_token] = i % per_token == 0 ? weight : zero_weights[i / per_token] + weight;
    }
    for (size_t i = 0; i < sums->total.size(); ++i) {
      const int64_t at = static_cast<int64_t>(i);
      const size_t token = i / static_cast<size_t>(hidden_size_);
      sums->total[i] += zero_weights[token] * rounded_at(rows, at / hidden_size_, at % hidden_size_);
    }
  }
  if (factor_ != 1) {
    for (float& total : sums->total) total *= factor_;
  }
  if (is_part()) return;
  if (shared_) add_shared(call, rows, sums);
  for (size_t i = 0; i < sums->total.size() && !output_bias_.empty(); ++i) {
    sums->total[i] += output_bias_[i % output_bias_.size()];
  }
}

void Layer::add_routed(const Call& call, const Rows& rows, const float* weights, const int32_t* ids, Sums* sums) const {
  const int64_t tokens = sums->num_tokens, width = experts_.shape.hidden_size;
  sums->total.resize(static_cast<size_t>(tokens * hidden_size_));
  const Rows total = rows_of(sums->total, hidden_size_);
  std::vector<float> latent;
  MoeProblem problem = problem_of(rows, total, weights, ids, tokens, sums->per_token);
  if (down_) {
    latent.resize(static_cast<size_t>(tokens * width));
    problem.hidden_states = problem.out = rows_of(latent, width);
    down_->compute(call, {rows, problem.out, tokens});
  }
  problem.activation = activation_;
  problem.apply_router_weight_on_input = weight_on_input_;
  experts_.compute(call, format_, problem);
  if (!down_) return;
  if (!latent_norm_.empty()) {
    const std::vector<float> factors = rms_factors(problem.out, tokens, width, latent_epsilon_, call.num_threads());
    for (size_t i = 0; i < latent.size(); ++i) {
      latent[i] *= factors[i / latent_norm_.size()];
      latent[i] *= latent_norm_[i % latent_norm_.size()];
    }
  }
  up_->compute(call, {problem.out, total, tokens});
}

void Layer::add_shared(const Call& call, const Rows& rows, Sums* sums) const {
  const size_t tokens = static_cast<size_t>(sums->num_tokens);
  std::vector<float> weights(tokens, shared_factor_);
  if (shared_gate_) {
    std::vector<float> gate(tokens);
    shared_gate_->compute(call, {rows, rows_of(gate, 1), sums->num_tokens});
    sigmoid(gate.data(), sums->num_tokens, gate.data());
    for (size_t i = 0; i < tokens; ++i) weights[i] *= gate[i];
  }
  sums->term.resize(sums->total.size());
  const std::vector<int32_t> ids(tokens);
  MoeProblem problem =
      problem_of(rows, rows_of(sums->term, hidden_size_), weights.data(), ids.data(), sums->num_tokens, 1);
  problem.activation = shared_activation_;
  shared_->compute(call, shared_format_, problem);
  for (size_t i = 0; i < sums->total.size(); ++i) sums->total[i] += sums->term[i];
}

}  // namespace mxfp4moe::capi
