// A mixture-of-experts layer of a packed file: src/mxfp4moe/layer_description.py says what its fields are, and
// src/mxfp4moe/reference/layer.py what it computes.
#pragma once

#include <optional>
#include <vector>

#include "capi/activation.h"
#include "capi/routing.h"
#include "capi/weights.h"

namespace mxfp4moe::capi {

// The weights and ids of the experts of some tokens.
struct Slots {
  std::vector<float> weights;
  std::vector<int32_t> ids;
  int64_t per_token;
  std::vector<bool> nonfinite;  // tokens whose result is NaN; empty if there are none
};

class Layer {
 public:
  Layer(const PackedFile& file, const Call& call);

  mxfp4moe_layer_info info() const;
  int64_t hidden_size() const { return hidden_size_; }
  int64_t top_k() const { return top_k_; }
  bool has_router_input() const { return has_router_input_; }
  bool routes_by_ids() const { return routing_.is_hash(); }

  // What a layer reads; `router` is `hidden` unless the router has an input of its own.
  struct Input {
    Rows hidden, router;
    const int64_t* input_ids;
    int64_t num_tokens;
    bool propagate_nonfinite;
  };

  // Makes it a slice, of the experts of these ids, each given once.
  void select(std::vector<int64_t> ids);

  Slots route(const Call& call, const Input& input) const;
  void add_up(const Call& call, const Input& input, const Slots& slots, const Rows& out) const;

 private:
  struct Sums;

  bool is_part() const { return !expert_map_.empty(); }
  // How many experts the whole layer has.
  int64_t num_experts() const { return is_part() ? static_cast<int64_t>(expert_map_.size()) : experts_.count(); }
  void read_expert_map(const PackedFile& file);
  void read_options(const PackedFile& file);
  void read_shared(const PackedFile& file);
  void read_latent(const PackedFile& file, const Call& call);
  void read_router(const PackedFile& file, const Call& call);

  std::vector<float> logits(const Call& call, const Rows& rows, int64_t num_tokens) const;
  std::vector<int32_t> places(const int32_t* ids, size_t count) const;
  void add_up_some(const Call& call, const Rows& rows, const Slots& slots, int64_t first, Sums* sums) const;
  void add_routed(const Call& call, const Rows& rows, const float* weights, const int32_t* ids, Sums* sums) const;
  void add_shared(const Call& call, const Rows& rows, Sums* sums) const;

  std::string path_;
  Experts experts_;
  std::vector<int32_t>
      expert_map_;  // of a slice: the place of each expert in `experts_`, or -1; empty of a whole layer
  std::optional<Experts> shared_;
  Linear router_;
  std::vector<float> router_bias_, output_bias_, latent_norm_;
  std::optional<double> router_epsilon_;
  double latent_epsilon_ = 0;
  std::optional<Linear> down_, up_, shared_gate_;
  LayerRouting routing_;
  Activation activation_{}, shared_activation_{};
  ActivationFormat format_ = ActivationFormat::kBFloat16, shared_format_ = ActivationFormat::kBFloat16;
  float factor_ = 1, shared_factor_ = 1;
  bool weight_on_input_ = false, has_router_input_ = false;
  int64_t hidden_size_ = 0, num_zero_experts_ = 0, num_choices_ = 0, top_k_ = 0;
};

}  // namespace mxfp4moe::capi
