// The fields of a layer in a packed file, each checked.
#include <algorithm>
#include <limits>
#include <utility>

#include "capi/layer.h"

namespace mxfp4moe::capi {
namespace {

constexpr int64_t kMaxLayerNumber = int64_t{1} << 40;
constexpr const char* kNeeded[] = {"experts", "top_k", "routing", "routing_arguments"};
constexpr const char* kOptional[] = {"activation",
                                     "alpha",
                                     "limit",
                                     "routed_scaling_factor",
                                     "shared_experts",
                                     "shared_limit",
                                     "layer_number",
                                     "apply_router_weight_on_input",
                                     "shared_scaling_factor",
                                     "num_zero_experts",
                                     "router_norm_eps",
                                     "separate_router_input",
                                     "latent_norm_eps",
                                     "activation_format"};
// Arrays, of which a file that has them also says true under their names.
constexpr const char* kMarkedArrays[] = {"shared_gate", "router_scale", "latent_down", "latent_norm",
                                         "latent_up",   "output_bias",  "expert_map"};

[[noreturn]] void wrong(const PackedFile& file, const char* name, const std::string& expected) {
  const Json* const value = file.meta().find(name);
  file.fail(std::string(name) + ": " + expected, value == nullptr ? "none" : value->shown());
}

// An optional field that is not null.
const Json* given(const PackedFile& file, const char* name) {
  const Json* const value = file.meta().find(name);
  return value == nullptr || value->is(Json::Kind::kNull) ? nullptr : value;
}

// A number; infinity is a text in JSON.
std::optional<double> number(const PackedFile& file, const char* name) {
  const Json* const value = given(file, name);
  if (value == nullptr) return {};
  if (value->is(Json::Kind::kString) && value->text == "inf") return std::numeric_limits<double>::infinity();
  if (!value->is_number()) wrong(file, name, "a number");
  return value->real;
}

float factor(const PackedFile& file, const char* name) {
  if (file.meta().find(name) == nullptr) return 1;
  const double value = number(file, name).value_or(0);
  if (!(value > 0 && value <= std::numeric_limits<float>::max())) wrong(file, name, "a finite float32 number above 0");
  return static_cast<float>(value);
}

std::optional<double> epsilon(const PackedFile& file, const char* name) {
  const std::optional<double> value = number(file, name);
  if (value && !(*value >= std::numeric_limits<float>::min() && *value <= std::numeric_limits<float>::max())) {
    wrong(file, name, "a float32 number above 0");
  }
  return value;
}

bool boolean(const PackedFile& file, const char* name) {
  const Json* const value = file.meta().find(name);
  if (value == nullptr) return false;
  if (!value->is(Json::Kind::kBool)) wrong(file, name, "true or false");
  return value->boolean;
}

int64_t integer(const PackedFile& file, const char* name, int64_t least, int64_t limit, int64_t otherwise) {
  const Json* const value = file.meta().find(name);
  if (value == nullptr) return otherwise;
  if (!value->is(Json::Kind::kInteger) || value->integer < least || value->integer > limit) {
    wrong(file, name, "an integer in [" + text_of(least) + ", " + text_of(limit) + "]");
  }
  return value->integer;
}

int32_t activation_number(const PackedFile& file) {
  const Json* const value = file.meta().find("activation");
  if (value == nullptr) return MXFP4MOE_ACTIVATION_SILU;
  for (int32_t i = 0; i < kNumActivations; ++i) {
    if (value->is(Json::Kind::kString) && value->text == kActivations[i].name) return i;
  }
  wrong(file, "activation", "the name of an activation");
}

// bfloat16 has no name in files.
int32_t activation_format_number(const PackedFile& file) {
  const Json* const value = given(file, "activation_format");
  if (value == nullptr) return MXFP4MOE_ACTIVATION_FORMAT_BFLOAT16;
  if (!value->is(Json::Kind::kString) || value->text != "int8") wrong(file, "activation_format", "null or \"int8\"");
  return MXFP4MOE_ACTIVATION_FORMAT_INT8;
}

// Packs a part with rows of k floats, used exactly.
Linear linear_of_part(const PackedFile& file, const PartInfo& part, int64_t rows, int64_t k, int num_threads) {
  const int32_t dtype = part.dtype == "F32"    ? MXFP4MOE_DTYPE_FLOAT32
                        : part.dtype == "F16"  ? MXFP4MOE_DTYPE_FLOAT16
                        : part.dtype == "BF16" ? MXFP4MOE_DTYPE_BFLOAT16
                                               : -1;
  const std::vector<int64_t> shape = part.shape.size() == 1 ? std::vector<int64_t>{k} : std::vector<int64_t>{rows, k};
  if (dtype < 0 || part.shape != shape) {
    file.fail("part " + part.name + " of " + text_of(rows) + " x " + text_of(k) + " floats", "another shape or dtype");
  }
  mxfp4moe_linear_arrays arrays{};
  arrays.format = MXFP4MOE_FORMAT_FLOAT32;
  arrays.num_rows = rows;
  arrays.num_columns = k;
  arrays.weight = {file.bytes()->data() + part.begin, static_cast<uint64_t>(part.end - part.begin), dtype};
  return Linear::of_arrays(arrays, num_threads);
}

std::vector<float> numbers(const PackedFile& file, const char* name, const std::vector<int64_t>& shape) {
  const PartInfo* const part = file.find(name);
  return part == nullptr ? std::vector<float>() : float_part(file, *part, shape);
}

void check_names(const PackedFile& file) {
  const Json& meta = file.meta();
  const auto is_in = [](const auto& names, const std::string& name) {
    return std::any_of(std::begin(names), std::end(names), [&](const char* each) { return name == each; });
  };
  for (const char* name : kNeeded) {
    if (meta.find(name) == nullptr) wrong(file, name, "a field of a layer");
  }
  for (const std::string& name : meta.keys) {
    const bool known = name == "kind" || name == "layout_version" || is_in(kNeeded, name) || is_in(kOptional, name) ||
                       is_in(kMarkedArrays, name);
    if (!known) file.fail("fields of a layer that this version knows", "\"" + name.substr(0, 80) + "\"");
  }
  for (const char* name : kMarkedArrays) {
    const Json* const mark = meta.find(name);
    const bool is_true = mark != nullptr && mark->is(Json::Kind::kBool) && mark->boolean;
    if (is_true != (file.find(name) != nullptr))
      wrong(file, name, "true if, and only if, there is a part of this name");
  }
  if (!meta.find("routing")->is(Json::Kind::kString) || !meta.find("routing_arguments")->is(Json::Kind::kObject)) {
    wrong(file, "routing", "a routing function by name, with its arguments");
  }
  if (given(file, "layer_number") != nullptr) integer(file, "layer_number", 0, kMaxLayerNumber, 0);
  if (file.find("router_weight") == nullptr) file.fail("a part router_weight", "none");
}

}  // namespace

Layer::Layer(const PackedFile& file, const Call& call) : path_(file.path()) {
  check_names(file);
  experts_ = Experts::of_file(file, "experts");
  hidden_size_ = experts_.shape.hidden_size;
  try {
    read_expert_map(file);
    read_latent(file, call);
    read_options(file);
    read_shared(file);
    read_router(file, call);
  } catch (const Error& error) {
    if (error.status != MXFP4MOE_INVALID_ARGUMENT) throw;
    throw Error{MXFP4MOE_INVALID_FILE, path_ + ": " + error.text};  // it names a field
  }
}

void Layer::read_expert_map(const PackedFile& file) {
  const PartInfo* const part = file.find("expert_map");
  if (part == nullptr) return;
  if (part->shape.size() != 1 || part->shape[0] < 1 || part->shape[0] > kMaxExperts) {
    file.fail("part expert_map with a number for each expert", "another shape");
  }
  int32_t next = 0;
  for (int64_t place : integer_part(file, *part)) {
    if (place != -1 && place != next) file.fail("places of experts in ascending order in expert_map", text_of(place));
    expert_map_.push_back(place == -1 ? -1 : next++);
  }
  if (next != experts_.count()) file.fail(text_of(experts_.count()) + " experts in expert_map", text_of(int64_t{next}));
}

void Layer::select(std::vector<int64_t> ids) {
  std::sort(ids.begin(), ids.end());
  std::vector<int32_t> chosen, map(static_cast<size_t>(num_experts()), -1);
  for (int64_t id : ids) {
    check_range("expert_ids", id, 0, num_experts() - 1);
    int32_t& place = map[static_cast<size_t>(id)];
    if (place >= 0) invalid("expert_ids", "each expert once", text_of(id) + " twice");
    place = static_cast<int32_t>(chosen.size());
    chosen.push_back(is_part() ? expert_map_[static_cast<size_t>(id)] : static_cast<int32_t>(id));
    if (chosen.back() < 0) invalid("expert_ids", "experts of this slice", text_of(id));
  }
  experts_ = experts_.select(chosen);
  expert_map_ = std::move(map);
}

void Layer::read_options(const PackedFile& file) {
  num_zero_experts_ = integer(file, "num_zero_experts", 0, down_ ? 0 : kMaxExperts, 0);
  num_choices_ = num_experts() + num_zero_experts_;
  top_k_ = integer(file, "top_k", 1, num_choices_, 0);
  activation_ =
      check_activation(activation_number(file), number(file, "alpha"), number(file, "limit"), experts_.shape.gated);
  format_ = check_activation_format(activation_format_number(file), is_integral(experts_.layer));
  factor_ = factor(file, "routed_scaling_factor");
  shared_factor_ = factor(file, "shared_scaling_factor");
  weight_on_input_ = boolean(file, "apply_router_weight_on_input");
  has_router_input_ = boolean(file, "separate_router_input");
  router_epsilon_ = epsilon(file, "router_norm_eps");
  output_bias_ = numbers(file, "output_bias", {hidden_size_});
}

void Layer::read_latent(const PackedFile& file, const Call& call) {
  const int64_t latent = experts_.shape.hidden_size;
  const PartInfo* const down = file.find("latent_down");
  const PartInfo* const up = file.find("latent_up");
  if ((down == nullptr) != (up == nullptr)) wrong(file, "latent_up", "both projections, or none");
  const PartInfo* const norm = file.find("latent_norm");
  if (norm != nullptr && down == nullptr) wrong(file, "latent_norm", "none without latent_down");
  const std::optional<double> eps = epsilon(file, "latent_norm_eps");
  if (eps.has_value() != (norm != nullptr)) wrong(file, "latent_norm_eps", "a number with latent_norm alone");
  if (down == nullptr) return;
  if (down->shape.size() != 2 || down->shape[1] < 1 || down->shape[1] > kMaxSize || up->shape.size() != 2) {
    file.fail("part latent_down with two axes", "another shape");
  }
  hidden_size_ = down->shape[1];
  down_ = linear_of_part(file, *down, latent, hidden_size_, call.num_threads());
  up_ = linear_of_part(file, *up, hidden_size_, latent, call.num_threads());
  latent_norm_ = numbers(file, "latent_norm", {latent});
  latent_epsilon_ = eps.value_or(0);
}

void Layer::read_shared(const PackedFile& file) {
  const std::optional<double> limit = number(file, "shared_limit");
  const PartInfo* const gate = file.find("shared_gate");
  if (given(file, "shared_experts") == nullptr) {
    if (limit) wrong(file, "shared_limit", "null without shared_experts");
    if (gate != nullptr) wrong(file, "shared_gate", "none without shared_experts");
    if (shared_factor_ != 1) wrong(file, "shared_scaling_factor", "1 without shared_experts");
    return;
  }
  shared_ = Experts::of_file(file, "shared_experts");
  const StorageShape& shape = shared_->shape;
  if (shape.num_experts != 1 || shape.hidden_size != hidden_size_ || shape.gated != experts_.shape.gated) {
    wrong(file, "shared_experts", "one expert of the layer's hidden size, with a gate if the others have one");
  }
  if (gate != nullptr) {
    if (gate->shape.size() != 1) file.fail("part shared_gate with one axis", "another shape");
    shared_gate_ = linear_of_part(file, *gate, 1, hidden_size_, 1);
    // The layer has the gate in float32, which holds narrower floats exactly.
  }
  shared_activation_ = check_activation(activation_number(file), number(file, "alpha"), limit, shape.gated);
  if (is_integral(shared_->layer)) shared_format_ = format_;
}

void Layer::read_router(const PackedFile& file, const Call& call) {
  std::vector<float> weight = numbers(file, "router_weight", {num_choices_, hidden_size_});
  const std::vector<float> scale = numbers(file, "router_scale", {hidden_size_});
  if (!scale.empty()) {
    for (size_t i = 0; i < weight.size(); ++i) weight[i] *= scale[i % scale.size()];
  }
  router_bias_ = numbers(file, "router_bias", {num_choices_});
  mxfp4moe_linear_arrays arrays{};
  arrays.format = MXFP4MOE_FORMAT_FLOAT32;
  arrays.num_rows = num_choices_;
  arrays.num_columns = hidden_size_;
  arrays.weight = {weight.data(), 4 * weight.size(), MXFP4MOE_DTYPE_FLOAT32};
  if (!router_epsilon_ && !router_bias_.empty()) {
    arrays.bias = {router_bias_.data(), 4 * router_bias_.size(), MXFP4MOE_DTYPE_FLOAT32};
  }
  router_ = Linear::of_arrays(arrays, call.num_threads());
  routing_ = LayerRouting(file, num_choices_, top_k_);
}

mxfp4moe_layer_info Layer::info() const {
  mxfp4moe_layer_info info{};
  info.format = experts_.format == nullptr ? 0 : experts_.format->number;
  info.needs_input_ids = routes_by_ids();
  info.needs_router_hidden_states = has_router_input_;
  info.num_experts = num_experts();
  info.hidden_size = hidden_size_;
  info.intermediate_size = experts_.shape.intermediate_size;
  info.top_k = top_k_;
  info.num_bytes = experts_.num_bytes + (shared_ ? shared_->num_bytes : 0);
  info.num_held_experts = experts_.count();
  info.w2_format = experts_.w2_format == nullptr ? 0 : experts_.w2_format->number;
  info.activation_format = static_cast<int32_t>(format_);
  return info;
}

}  // namespace mxfp4moe::capi
