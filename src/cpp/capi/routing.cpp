#include "capi/routing.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "capi/formats.h"
#include "formats/bf16.h"
#include "routing/ids.h"

namespace mxfp4moe::capi {
namespace {

RoutingRule rule_of(const mxfp4moe_routing& r) {
  RoutingRule rule{};
  rule.score.scoring = static_cast<Scoring>(r.scoring);
  rule.score.logit_softcap = static_cast<float>(r.logit_softcap);
  rule.score.jitter_eps = static_cast<float>(r.jitter_eps);
  rule.choice.ids_given = r.ids_given != 0;
  const bool is_special = r.scoring >= MXFP4MOE_SCORING_TOPK_SOFTMAX;  // which is by logits, and normalized by itself
  rule.choice.by_logit = is_special || r.select_by_logit != 0;
  rule.choice.num_shared = r.num_shared_experts;
  rule.choice.num_groups = r.num_groups;
  rule.choice.topk_group = r.topk_group;
  rule.choice.group_score = static_cast<GroupScore>(r.group_score);
  rule.choice.zero_masked = r.zero_masked_groups != 0;
  rule.weight.renormalize = !is_special && r.renormalize != 0;
  rule.weight.norm_order = static_cast<float>(r.norm_order);
  rule.weight.norm_epsilon = static_cast<float>(r.norm_epsilon);
  rule.weight.norm_floor = static_cast<float>(r.norm_floor);
  rule.weight.routed_scaling_factor = static_cast<float>(r.routed_scaling_factor);
  return rule;
}

// Whether all but the scoring, select_by_logit and jitter_eps are those that leave a step out.
bool is_plain(const mxfp4moe_routing& r) {
  const mxfp4moe_routing none = default_routing();
  return r.num_shared_experts == 0 && r.num_groups == 1 && r.topk_group == 1 && r.logit_softcap == 0 && !r.ids_given &&
         !r.zero_masked_groups && r.group_score == none.group_score && r.correction_bias == nullptr &&
         r.expert_scale == nullptr && r.routed_scaling_factor == 1 && r.norm_order == 1 && r.norm_floor == 0;
}

template <class T>
T number_at(const uint8_t* data, int64_t i) {
  T value;
  std::memcpy(&value, data + i * int64_t{sizeof(T)}, sizeof(T));
  return value;
}

// Arguments of a routing function, as a packed layer has them.
class Arguments {
 public:
  Arguments(const PackedFile& file) : file_(file), values_(*file.meta().find("routing_arguments")) {}

  [[noreturn]] void fail(const std::string& name, const std::string& expected) const {
    const Json* const value = values_.find(name);
    file_.fail("routing argument " + name + ": " + expected, value == nullptr ? "none" : value->shown());
  }

  // Raises if there is an argument that is none of these.
  void check_names(std::initializer_list<const char*> names) const {
    const auto is_known = [&](const std::string& given) {
      return std::any_of(names.begin(), names.end(), [&](const char* name) { return given == name; });
    };
    for (const std::string& name : values_.keys) {
      if (!is_known(name) || array(name.c_str()) != nullptr) fail(name, "an argument of the routing function, once");
    }
    for (const PartInfo& part : file_.parts()) {
      if (part.name.rfind(kPrefix, 0) == 0 && !is_known(part.name.substr(std::strlen(kPrefix)))) {
        fail(part.name, "an argument of the routing function");
      }
    }
  }

  bool has(const char* name) const { return values_.find(name) != nullptr; }
  const PartInfo* array(const char* name) const { return file_.find(std::string(kPrefix) + name); }
  const PackedFile& file() const { return file_; }

  void read(const char* name, int32_t* to) const {
    const Json* const value = given(name);
    if (value == nullptr) return;
    if (!value->is(Json::Kind::kBool)) fail(name, "true or false");
    *to = value->boolean;
  }

  void read(const char* name, int64_t* to) const {
    const Json* const value = given(name);
    if (value == nullptr) return;
    if (!value->is(Json::Kind::kInteger)) fail(name, "an integer");
    *to = value->integer;
  }

  void read(const char* name, double* to) const {
    const Json* const value = given(name);
    if (value == nullptr) return;
    if (!value->is_number()) fail(name, "a number");
    *to = value->real;
  }

  // Reads one of `names`, and gives its place among them.
  void read(const char* name, std::initializer_list<const char*> names, int32_t* to) const {
    const Json* const value = given(name);
    if (value == nullptr) return;
    const auto at = std::find_if(names.begin(), names.end(), [&](const char* each) {
      return value->is(Json::Kind::kString) && value->text == each;
    });
    if (at == names.end()) fail(name, "one of its names");
    *to = static_cast<int32_t>(at - names.begin());
  }

  std::vector<float> numbers(const char* name, int64_t count) const {
    const PartInfo* const part = array(name);
    if (part == nullptr) {
      if (has(name) && !values_.find(name)->is(Json::Kind::kNull)) fail(name, "an array");
      return {};
    }
    return float_part(file_, *part, {count}, true);
  }

 private:
  static constexpr const char* kPrefix = "routing/";

  const Json* given(const char* name) const {
    if (array(name) != nullptr) fail(name, "no array");
    return values_.find(name);
  }

  const PackedFile& file_;
  const Json& values_;
};

}  // namespace

std::vector<int64_t> integer_part(const PackedFile& file, const PartInfo& part) {
  const uint8_t* const data = file.bytes()->data() + part.begin;
  const std::string& dtype = part.dtype;
  int64_t count = 1;
  for (int64_t size : part.shape) count *= size;
  std::vector<int64_t> result(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    int64_t& to = result[static_cast<size_t>(i)];
    if (dtype == "I32") {
      to = number_at<int32_t>(data, i);
    } else if (dtype == "I64") {
      to = number_at<int64_t>(data, i);
    } else if (dtype == "U64") {
      constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();  // no number of an expert either
      to = static_cast<int64_t>(std::min(number_at<uint64_t>(data, i), kMost));
    } else if (dtype == "U32") {
      to = number_at<uint32_t>(data, i);
    } else if (dtype == "I16") {
      to = number_at<int16_t>(data, i);
    } else if (dtype == "U16") {
      to = number_at<uint16_t>(data, i);
    } else if (dtype == "I8") {
      to = static_cast<int8_t>(data[i]);
    } else if (dtype == "U8") {
      to = data[i];
    } else {
      file.fail("integers in part " + part.name, dtype);
    }
  }
  return result;
}

std::vector<float> float_part(const PackedFile& file, const PartInfo& part, const std::vector<int64_t>& shape,
                              bool with_float64) {
  const std::string& dtype = part.dtype;
  const bool known = dtype == "F32" || dtype == "F16" || dtype == "BF16" || (with_float64 && dtype == "F64");
  if (!known || part.shape != shape) {
    std::string text;
    for (int64_t size : shape) text += (text.empty() ? "" : " x ") + text_of(size);
    file.fail("part " + part.name + " of " + text + " floats", "one of another shape or dtype");
  }
  const uint8_t* const data = file.bytes()->data() + part.begin;
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  std::vector<float> result(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    float& to = result[static_cast<size_t>(i)];
    if (dtype == "F32") {
      to = number_at<float>(data, i);
    } else if (dtype == "F64") {
      to = static_cast<float>(number_at<double>(data, i));
    } else {
      const uint16_t bits = number_at<uint16_t>(data, i);
      to = dtype == "BF16" ? bf16_to_f32(bits) : f16_to_f32(bits);
    }
  }
  return result;
}

mxfp4moe_routing default_routing() {
  mxfp4moe_routing routing{};
  routing.struct_size = sizeof(routing);
  routing.renormalize = 1;
  routing.num_groups = routing.topk_group = 1;
  routing.norm_order = 1;
  routing.norm_epsilon = 1e-20;
  routing.routed_scaling_factor = 1;
  return routing;
}

void check_routing(const mxfp4moe_routing& r, int64_t num_logits, int64_t top_k) {
  check_range("num_logits", num_logits, 1, kMaxExperts);
  check_range("routing.scoring", r.scoring, MXFP4MOE_SCORING_SOFTMAX, MXFP4MOE_SCORING_SPARSEMIXER);
  check_range("routing.group_score", r.group_score, MXFP4MOE_GROUP_TOP2_SUM, MXFP4MOE_GROUP_MAX);
  for (const auto& [name, flag] : {std::pair<const char*, int32_t>{"routing.select_by_logit", r.select_by_logit},
                                   {"routing.ids_given", r.ids_given},
                                   {"routing.zero_masked_groups", r.zero_masked_groups},
                                   {"routing.renormalize", r.renormalize}}) {
    check_flag(name, flag);
  }
  check_range("routing.num_shared_experts", r.num_shared_experts, 0, num_logits - 1);
  const int64_t num_experts = num_logits - r.num_shared_experts;
  check_range("routing.num_groups", r.num_groups, 1, num_experts);
  if (num_experts % r.num_groups != 0) {
    invalid("routing.num_groups", "a divisor of " + text_of(num_experts), text_of(r.num_groups));
  }
  check_range("routing.topk_group", r.topk_group, 1, r.num_groups);
  if (r.logit_softcap != 0) {
    check_float32("routing.logit_softcap", r.logit_softcap, 0);
    if (!(static_cast<float>(r.logit_softcap) > 0)) invalid("routing.logit_softcap", "0, or a float32 above 0", "less");
  }
  check_float32("routing.jitter_eps", r.jitter_eps, 0);
  check_float32("routing.norm_order", r.norm_order, 1);
  check_float32("routing.norm_epsilon", r.norm_epsilon, 0);
  check_float32("routing.norm_floor", r.norm_floor, 0);
  check_float32("routing.routed_scaling_factor", r.routed_scaling_factor);
  const bool is_special = r.scoring >= MXFP4MOE_SCORING_TOPK_SOFTMAX;
  if (is_special && !is_plain(r)) invalid("routing", "no other field with this scoring", "some");
  if (r.jitter_eps != 0 && r.scoring != MXFP4MOE_SCORING_SPARSEMIXER) {
    invalid("routing.jitter_eps", "0 with this scoring", text_of(r.jitter_eps));
  }
  if (r.ids_given) {
    const bool scored = r.scoring == MXFP4MOE_SCORING_SIGMOID || r.scoring == MXFP4MOE_SCORING_SQRT_SOFTPLUS;
    const bool alone = r.num_shared_experts == 0 && r.num_groups == 1 && r.correction_bias == nullptr &&
                       !r.select_by_logit && r.logit_softcap == 0;
    if (!scored || !alone) invalid("routing.ids_given", "0 with this rule", "1");
  }
  const int64_t kept = r.zero_masked_groups ? num_experts : r.topk_group * (num_experts / r.num_groups);
  check_range("top_k", top_k, 1, r.ids_given ? kMaxExperts : kept);
}

void run_route(const mxfp4moe_routing& r, const mxfp4moe_route_args& args, int num_threads) {
  if (r.expert_scale != nullptr) {
    for (int64_t i = 0; i < args.num_logits; ++i) {
      if (!std::isfinite(r.expert_scale[i])) {
        invalid("routing.expert_scale", "finite values", "another at position " + text_of(i));
      }
    }
  }
  const int64_t num_slots = args.top_k + r.num_shared_experts;
  if (args.num_tokens == 0) return;
  if (r.ids_given) {
    const IdTable ids{
        reinterpret_cast<const uint8_t*>(args.topk_ids), args.num_tokens, num_slots, 4 * num_slots, 4, false};
    const int64_t bad = local_ids(ids, nullptr, args.num_logits, nullptr);
    const int64_t count = args.num_tokens * num_slots;
    const int32_t* const dropped = std::find(args.topk_ids, args.topk_ids + count, -1);
    if (bad >= 0 || dropped != args.topk_ids + count) {
      invalid("topk_ids", "ids in [0, " + text_of(args.num_logits - 1) + "]",
              "another at position " + text_of(bad >= 0 ? bad : dropped - args.topk_ids));
    }
  }
  RoutingArgs call{};
  call.logits = args.router_logits;
  call.correction_bias = r.correction_bias;
  call.expert_scale = r.expert_scale;
  call.num_tokens = args.num_tokens;
  call.num_experts = args.num_logits;
  call.num_slots = num_slots;
  call.rule = rule_of(r);
  call.topk_weights = args.topk_weights;
  call.topk_ids = args.topk_ids;
  const int64_t bad_row = route(call, num_threads);
  if (bad_row == kNoRoutingMemory) throw std::bad_alloc();
  if (bad_row == kBadBias) invalid("routing.correction_bias", "finite values or -inf", "NaN or infinity");
  if (bad_row >= 0) {
    invalid("router_logits", "finite values or -inf, not -inf throughout", "others in row " + text_of(bad_row));
  }
}

LayerRouting::LayerRouting(const PackedFile& file, int64_t num_logits, int64_t top_k)
    : routing_(default_routing()), num_logits_(num_logits), top_k_(top_k) {
  read_arguments(file);
  // Wrong arguments are found by routing one token.
  const std::vector<float> logits(static_cast<size_t>(num_logits));
  try {
    mxfp4moe_routing routing = routing_;
    if (!bias_.empty()) routing.correction_bias = bias_.data();
    if (!scale_.empty()) routing.expert_scale = scale_.data();
    check_routing(routing, num_logits, top_k);
    num_shared_ = routing.num_shared_experts;
    std::vector<float> weights(static_cast<size_t>(num_slots()));
    std::vector<int32_t> ids(static_cast<size_t>(num_slots()));
    const int64_t first = 0;
    choose(logits.data(), &first, 1, weights.data(), ids.data(), 1);
  } catch (const Error& error) {
    throw Error{error.status == MXFP4MOE_INVALID_ARGUMENT ? MXFP4MOE_INVALID_FILE : error.status,
                file.path() + ": " + error.text};
  }
}

void LayerRouting::read_arguments(const PackedFile& file) {
  const Arguments arguments(file);
  const std::string& name = file.meta().find("routing")->text;
  mxfp4moe_routing& r = routing_;
  if (name == "topk_softmax") {
    arguments.check_names({"renormalize"});
    arguments.read("renormalize", &r.renormalize);
    // This gives the same numbers and computes fewer scores.
    r.scoring = MXFP4MOE_SCORING_TOPK_SOFTMAX;
    r.select_by_logit = 1;
    if (!r.renormalize) r.scoring = MXFP4MOE_SCORING_SOFTMAX;
  } else if (name == "topk_sigmoid" || name == "topk_sqrt_softplus" || name == "grouped_topk") {
    const bool grouped = name == "grouped_topk";
    arguments.check_names({"correction_bias", "renormalize", "routed_scaling_factor", grouped ? "num_groups" : "",
                           grouped ? "topk_group" : ""});
    r.scoring = name == "topk_sqrt_softplus" ? MXFP4MOE_SCORING_SQRT_SOFTPLUS : MXFP4MOE_SCORING_SIGMOID;
    arguments.read("renormalize", &r.renormalize);
    arguments.read("routed_scaling_factor", &r.routed_scaling_factor);
    for (const char* needed : {"num_groups", "topk_group"}) {
      if (grouped && !arguments.has(needed)) arguments.fail(needed, "an integer");
    }
    arguments.read("num_groups", &r.num_groups);
    arguments.read("topk_group", &r.topk_group);
    bias_ = arguments.numbers("correction_bias", num_logits_);
  } else if (name == "sparsemixer") {
    arguments.check_names({"jitter_eps"});
    if (!arguments.has("jitter_eps")) arguments.fail("jitter_eps", "a number");
    r.scoring = MXFP4MOE_SCORING_SPARSEMIXER;
    arguments.read("jitter_eps", &r.jitter_eps);
  } else if (name == "hash_topk") {
    arguments.check_names({"tid2eid", "routed_scaling_factor"});
    arguments.read("routed_scaling_factor", &r.routed_scaling_factor);
    r.scoring = MXFP4MOE_SCORING_SQRT_SOFTPLUS;
    r.ids_given = 1;
    const PartInfo* const table = arguments.array("tid2eid");
    if (table == nullptr || table->shape.size() != 2 || table->shape[0] < 1 || table->shape[1] != top_k_) {
      arguments.fail("tid2eid", "an array with top_k experts for each token id");
    }
    table_ = integer_part(file, *table);
  } else if (name == "select_experts") {
    arguments.check_names({"scoring", "logit_softcap", "num_shared_experts", "select_by", "correction_bias",
                           "num_groups", "topk_group", "group_score", "masked_groups", "renormalize", "norm_order",
                           "norm_epsilon", "norm_floor", "routed_scaling_factor", "expert_scale"});
    arguments.read("scoring", {"softmax", "sigmoid", "sqrt_softplus"}, &r.scoring);
    const Json* const softcap = file.meta().find("routing_arguments")->find("logit_softcap");
    if (softcap != nullptr && !softcap->is(Json::Kind::kNull)) {
      arguments.read("logit_softcap", &r.logit_softcap);
      if (!(r.logit_softcap > 0)) arguments.fail("logit_softcap", "null or a number above 0");
    }
    arguments.read("num_shared_experts", &r.num_shared_experts);
    arguments.read("select_by", {"score", "logit"}, &r.select_by_logit);
    arguments.read("num_groups", &r.num_groups);
    arguments.read("topk_group", &r.topk_group);
    arguments.read("group_score", {"top2_sum", "max"}, &r.group_score);
    arguments.read("masked_groups", {"exclude", "zero"}, &r.zero_masked_groups);
    arguments.read("renormalize", &r.renormalize);
    arguments.read("norm_order", &r.norm_order);
    arguments.read("norm_epsilon", &r.norm_epsilon);
    arguments.read("norm_floor", &r.norm_floor);
    arguments.read("routed_scaling_factor", &r.routed_scaling_factor);
    if (r.num_shared_experts < 0 || r.num_shared_experts >= num_logits_) {
      arguments.fail("num_shared_experts", "an integer below the number of logits");
    }
    bias_ = arguments.numbers("correction_bias", num_logits_ - r.num_shared_experts);
    scale_ = arguments.numbers("expert_scale", num_logits_);
  } else {
    file.fail("the name of a routing function", "\"" + name.substr(0, 80) + "\"");
  }
}

void LayerRouting::choose(const float* logits, const int64_t* input_ids, int64_t num_tokens, float* topk_weights,
                          int32_t* topk_ids, int num_threads) const {
  mxfp4moe_routing routing = routing_;
  if (!bias_.empty()) routing.correction_bias = bias_.data();
  if (!scale_.empty()) routing.expert_scale = scale_.data();
  if (is_hash() && num_tokens > 0) {
    const int64_t vocabulary = static_cast<int64_t>(table_.size()) / top_k_;
    const IdTable table{reinterpret_cast<const uint8_t*>(table_.data()), vocabulary, top_k_, 8 * top_k_, 8, true};
    const IdPosition bad = hash_ids(input_ids, num_tokens, table, num_logits_, topk_ids);
    if (bad.row >= 0 && bad.column < 0) {
      invalid("input_ids", "values in [0, " + text_of(vocabulary - 1) + "]", "another at position " + text_of(bad.row));
    }
    if (bad.row >= 0) invalid("tid2eid", "experts of the layer", "others of token id " + text_of(input_ids[bad.row]));
  }
  run_route(routing, {sizeof(mxfp4moe_route_args), logits, topk_weights, topk_ids, num_tokens, num_logits_, top_k_},
            num_threads);
}

}  // namespace mxfp4moe::capi
