// Routing rules of callers and of layers.
#pragma once

#include <vector>

#include "capi/arguments.h"
#include "capi/packed_file.h"
#include "routing/routing.h"

namespace mxfp4moe::capi {

mxfp4moe_routing default_routing();

// Raises unless the rule is one for so many logits and chosen experts.
void check_routing(const mxfp4moe_routing& routing, int64_t num_logits, int64_t top_k);

// Weights and ids of experts; the arguments have been checked but for the numbers of arrays.
void run_route(const mxfp4moe_routing& routing, const mxfp4moe_route_args& args, int num_threads);

// How a layer makes experts and weights of logits: a routing function by name, with its arguments.
class LayerRouting {
 public:
  // Reads the routing of a packed layer, which has so many logits and this top_k.
  LayerRouting() = default;
  LayerRouting(const PackedFile& file, int64_t num_logits, int64_t top_k);

  bool is_hash() const { return !table_.empty(); }
  // A token has top_k slots, and one for each shared expert that the router weighs.
  int64_t num_slots() const { return top_k_ + num_shared_; }
  void choose(const float* logits, const int64_t* input_ids, int64_t num_tokens, float* topk_weights, int32_t* topk_ids,
              int num_threads) const;

 private:
  void read_arguments(const PackedFile& file);

  mxfp4moe_routing routing_{};
  int64_t num_logits_ = 0, top_k_ = 0, num_shared_ = 0;
  std::vector<float> bias_, scale_;
  std::vector<int64_t> table_;  // the experts of each token id
};

// The numbers of a part of integers.
std::vector<int64_t> integer_part(const PackedFile& file, const PartInfo& part);
// The numbers of a part as float32; raises unless it is a float array of `shape`.
std::vector<float> float_part(const PackedFile& file, const PartInfo& part, const std::vector<int64_t>& shape,
                              bool with_float64 = false);

}  // namespace mxfp4moe::capi
