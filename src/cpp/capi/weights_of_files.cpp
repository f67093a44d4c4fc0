// Packed weights of files: every field is checked, as Python checks it.
#include <algorithm>
#include <utility>

#include "capi/weights.h"

namespace mxfp4moe::capi {
namespace {

constexpr int64_t kMaxTerms[] = {3, 2, 1};  // by the number of a float dtype

// The fields of one description; errors name the file, the prefix and the field.
class Fields {
 public:
  Fields(const PackedFile& file, const std::string& prefix) : file_(file), prefix_(prefix) {
    fields_ = file.meta().find(prefix);
  }

  [[noreturn]] void fail(const char* field, const std::string& expected) const {
    const Json* const value = fields_ == nullptr ? nullptr : fields_->find(field);
    capi::fail(MXFP4MOE_INVALID_FILE, file_.path() + ": " + prefix_ + ": " + field, expected,
               value == nullptr ? "none" : value->shown());
  }

  // Raises unless the fields are `names` and perhaps some of `optional`.
  void check_names(std::initializer_list<const char*> names, std::initializer_list<const char*> optional) const {
    const bool is_object = fields_ != nullptr && fields_->is(Json::Kind::kObject);
    size_t found = 0;
    for (const char* name : names) found += is_object && fields_->find(name) != nullptr;
    size_t more = 0;
    for (const char* name : optional) more += is_object && fields_->find(name) != nullptr;
    if (found != names.size() || fields_->keys.size() != found + more) fail("fields", "those of such weights");
  }

  const Json* find(const char* field) const { return fields_->find(field); }
  const Json& at(const char* field) const { return *fields_->find(field); }

  const Format& format(int32_t largest) const { return format(at("format"), largest); }

  // The formats of w13 and w2, which are one name or two.
  std::pair<const Format&, const Format&> formats(int32_t largest) const {
    const Json& names = at("format");
    if (!names.is(Json::Kind::kArray)) {
      const Format& both = format(names, largest);
      return {both, both};
    }
    if (names.items.size() != 2) fail("format", "the name of a weight format, or those of two");
    return {format(names.items[0], largest), format(names.items[1], largest)};
  }

  int64_t size(const char* field, const Json& value, int64_t multiple, int64_t limit) const {
    if (!value.is(Json::Kind::kInteger) || value.integer < 1 || value.integer > limit ||
        value.integer % multiple != 0) {
      fail(field, "a multiple of " + text_of(multiple) + " in [1, " + text_of(limit) + "]");
    }
    return value.integer;
  }

  bool boolean(const char* field, bool otherwise) const {
    const Json* const value = find(field);
    if (value == nullptr) return otherwise;
    if (!value->is(Json::Kind::kBool)) fail(field, "true or false");
    return value->boolean;
  }

  // Whether there are tensor scales, which formats may have or need.
  bool tensor_scale(const char* field, bool may, bool needed) const {
    const bool value = boolean(field, needed);
    if ((value && !may) || (!value && needed)) fail(field, "true or false, as the format has it");
    return value;
  }

  MatrixDtypes dtypes(const char* field, const Format& format, bool float16_bias) const {
    const Json& value = at(field);
    const size_t count = value.items.size();
    if (!value.is(Json::Kind::kArray) || count < 3 || count > (format.has_groups ? 5 : 3)) {
      fail(field, "the dtypes of weights, scales and bias");
    }
    MatrixDtypes result;
    for (const WeightDtype& weight : format.weights) take(value.items[0], weight.dtype, &result.weights);
    for (int32_t dtype : format.scales) take(value.items[1], dtype, &result.scales);
    for (int32_t dtype : {MXFP4MOE_DTYPE_FLOAT32, MXFP4MOE_DTYPE_BFLOAT16}) take(value.items[2], dtype, &result.bias);
    if (float16_bias) take(value.items[2], MXFP4MOE_DTYPE_FLOAT16, &result.bias);
    if (count == 4) take(value.items[3], format.zero_dtype, &result.zero_points);
    if (count == 5 && result.scales >= 0) take(value.items[4], result.scales, &result.offsets);
    const bool right = result.weights >= 0 &&
                       (result.scales >= 0 || (!format.has_scales() && is_null(value.items[1]))) &&
                       (result.bias >= 0 || is_null(value.items[2])) && (count != 4 || result.zero_points >= 0) &&
                       (count != 5 || (is_null(value.items[3]) && result.offsets >= 0));
    if (!right) fail(field, "dtypes that the format has");
    return result;
  }

  // The blocks of scales of sums, where a format has blocks of any shape.
  ScaleBlocks block_shape(bool has_block_shape) const {
    const Json& value = at("block_shape");
    if (!has_block_shape) {
      if (!is_null(value)) fail("block_shape", "null with this format");
      return {};
    }
    if (!value.is(Json::Kind::kArray) || value.items.size() != 2) fail("block_shape", "a list of two sizes or nulls");
    int64_t sizes[2] = {};
    for (int i = 0; i < 2; ++i) {
      const Json& item = value.items[static_cast<size_t>(i)];
      if (!is_null(item)) sizes[i] = size("block_shape", item, i == 0 ? 1 : kBlockK, kMaxSize);
    }
    return {sizes[0], sizes[1]};
  }

  // The size of the groups of rows of k weights; 0 is the whole row.
  int64_t group_size(const char* field, const Json& value, int64_t k) const {
    if (is_null(value)) return 0;
    const int64_t group = value.integer;
    if (!value.is(Json::Kind::kInteger) || group >= k || !is_group_size(group, k)) {
      fail(field, "null, or 16 or a multiple of 32 that divides " + text_of(k));
    }
    return group;
  }

  static bool is_null(const Json& value) { return value.is(Json::Kind::kNull); }

 private:
  const Format& format(const Json& name, int32_t largest) const {
    const Format* const found = name.is(Json::Kind::kString) ? find_format(name.text) : nullptr;
    if (found == nullptr || found->number > largest) fail("format", "the name of a weight format");
    return *found;
  }

  static void take(const Json& name, int32_t dtype, int32_t* to) {
    if (name.is(Json::Kind::kString) && name.text == dtype_name(dtype)) *to = dtype;
  }

  const PackedFile& file_;
  const std::string& prefix_;
  const Json* fields_;
};

// A part as it should be: its name after the prefix, and the bytes of each of its rows.
struct Expected {
  std::string name;
  int64_t row_bytes;
};

void add_parts(const MatrixLayout& m, const char* matrix, std::vector<Expected>* parts) {
  for (int i = 0; i < kNumParts; ++i) {
    if (m.expert_bytes[i] > 0) parts->push_back({std::string(matrix) + kPartSuffixes[i], m.expert_bytes[i]});
  }
}

// The packed bytes under `prefix`, which are `total` bytes in parts that follow one another.
const uint8_t* find_bytes(const PackedFile& file, const std::string& prefix, int64_t num_rows,
                          const std::vector<Expected>& expected, int64_t total) {
  const std::vector<PartInfo>& parts = file.parts();
  const auto has_prefix = [&](const PartInfo& part) { return part.name.rfind(prefix + '/', 0) == 0; };
  const auto first = std::find_if(parts.begin(), parts.end(), has_prefix);
  const int64_t count = std::count_if(parts.begin(), parts.end(), has_prefix);
  bool right = count == static_cast<int64_t>(expected.size()) && parts.end() - first >= count && count > 0;
  for (int64_t i = 0; right && i < count; ++i) {
    const PartInfo& part = first[i];
    const Expected& want = expected[static_cast<size_t>(i)];
    right = part.name == prefix + '/' + want.name && part.dtype == "U8" &&
            part.shape == std::vector<int64_t>{num_rows, want.row_bytes};
  }
  if (!right) file.fail("the parts of " + prefix + " that its description says, one after the other", "others");
  if (round_up(first[count - 1].end, 4096) - first->begin != total) {
    file.fail(text_of(total) + " bytes of " + prefix, "others");
  }
  return file.bytes()->data() + first->begin;
}

// What shares a scale in w13 and w2, of formats of which one at least has groups, or blocks of any shape.
std::pair<ScaleBlocks, ScaleBlocks> scale_blocks(const Fields& fields, const StorageShape& shape, const Format& w13,
                                                 const Format& w2) {
  const ScaleBlocks blocks = fields.block_shape(w13.has_block_shape() || w2.has_block_shape());
  const Json* const groups = fields.find("group_sizes");
  const bool has_groups = w13.has_groups || w2.has_groups;
  if ((groups != nullptr && !Fields::is_null(*groups)) != has_groups) {
    fields.fail("group_sizes", "sizes with formats of integers alone");
  }
  if (has_groups && (!groups->is(Json::Kind::kArray) || groups->items.size() != 2)) {
    fields.fail("group_sizes", "two sizes or nulls");
  }
  const auto of = [&](const Format& format, size_t i, int64_t k) -> ScaleBlocks {
    if (format.has_groups) return {1, fields.group_size("group_sizes", groups->items[i], k)};
    if (has_groups && !Fields::is_null(groups->items[i]))
      fields.fail("group_sizes", "null for a format without groups");
    return format.has_block_shape() ? blocks : ScaleBlocks{};
  };
  return {of(w13, 0, shape.hidden_size), of(w2, 1, shape.intermediate_size)};
}

void check_columns(const Fields& fields, const PackedLayer& layer) {
  const int64_t count = layer.num_experts * layer.hidden_size;
  if (first_outside(layer.columns, count, layer.hidden_size) < count) {
    fields.fail("columns", "hidden states in [0, " + text_of(layer.hidden_size - 1) + "]");
  }
}

}  // namespace

Experts Experts::of_file(const PackedFile& file, const std::string& prefix) {
  if (const GivenExperts* const given = file.find_given(prefix)) return of_given(*given);
  const Fields fields(file, prefix);
  fields.check_names({"format", "num_experts", "hidden_size", "intermediate_size", "gate_up_layout", "block_shape",
                      "w13_dtypes", "w2_dtypes"},
                     {"tensor_scales", "gated", "group_sizes", "columns"});
  Experts experts;
  StorageShape& shape = experts.shape;
  const auto [format, w2_format] = fields.formats(MXFP4MOE_FORMAT_INT8);
  experts.format = &format;
  experts.w2_format = &w2_format;
  shape.num_experts = fields.size("num_experts", fields.at("num_experts"), 1, kMaxExperts);
  shape.hidden_size = fields.size("hidden_size", fields.at("hidden_size"), format.k_multiple, kMaxSize);
  shape.intermediate_size =
      fields.size("intermediate_size", fields.at("intermediate_size"), w2_format.k_multiple, kMaxSize);
  shape.gated = fields.boolean("gated", true);
  shape.has_columns = fields.boolean("columns", false);
  const Json& order = fields.at("gate_up_layout");
  shape.interleaved = order.is(Json::Kind::kString) && order.text == "interleaved";
  if (!order.is(Json::Kind::kString) || (order.text != "concatenated" && (!shape.interleaved || !shape.gated))) {
    fields.fail("gate_up_layout", "\"concatenated\", or \"interleaved\" with a gate");
  }
  const MatrixDtypes w13 = fields.dtypes("w13_dtypes", format, false);
  const MatrixDtypes w2 = fields.dtypes("w2_dtypes", w2_format, false);
  if (&format == &w2_format && format.find(w13.weights)->packed != format.find(w2.weights)->packed) {
    fields.fail("w2_dtypes", "elements as of w13");
  }
  shape.has_w13_bias = w13.bias >= 0;
  shape.has_w2_bias = w2.bias >= 0;
  shape.tensor_scales =
      fields.tensor_scale("tensor_scales", format.may_have_tensor_scale() || w2_format.may_have_tensor_scale(),
                          format.has_tensor_scale || w2_format.has_tensor_scale);
  const auto [w13_blocks, w2_blocks] = scale_blocks(fields, shape, format, w2_format);
  shape.w13 = packed_format(format, w13, w13_blocks);
  shape.w2 = packed_format(w2_format, w2, w2_blocks);
  const StorageLayout layout = storage_layout(shape);
  if (layout.total < 0) fields.fail("num_experts", "sizes that fit in memory");
  std::vector<Expected> parts;
  add_parts(layout.w13, "w13", &parts);
  add_parts(layout.w2, "w2", &parts);
  experts.layer = view_storage(shape, find_bytes(file, prefix, shape.num_experts, parts, layout.total));
  if (shape.has_columns) check_columns(fields, experts.layer);
  experts.num_bytes = layout.total;
  experts.bytes = file.bytes();
  return experts;
}

Experts Experts::of_given(const GivenExperts& given) {
  Experts experts;
  experts.shape.num_experts = given.layer.num_experts;
  experts.shape.hidden_size = given.layer.hidden_size;
  experts.shape.intermediate_size = given.layer.intermediate_size;
  experts.shape.gated = given.gated;
  experts.layer = given.layer;
  return experts;
}

Linear Linear::of_file(const PackedFile& file, const std::string& prefix) {
  const Fields fields(file, prefix);
  fields.check_names({"format", "shape", "dtypes", "block_shape", "tensor_scale", "num_terms"}, {"group_size"});
  Linear linear;
  MatrixShape& shape = linear.shape;
  const Format& format = fields.format(MXFP4MOE_FORMAT_FLOAT32);
  linear.format = &format;
  const Json& sizes = fields.at("shape");
  if (!sizes.is(Json::Kind::kArray) || sizes.items.size() != 2) fields.fail("shape", "two sizes");
  shape.num_rows = fields.size("shape", sizes.items[0], 1, kMaxSize);
  shape.k = fields.size("shape", sizes.items[1], format.k_multiple, kMaxSize);
  const MatrixDtypes dtypes = fields.dtypes("dtypes", format, true);
  if (format.number == MXFP4MOE_FORMAT_BF16 && dtypes.weights != MXFP4MOE_DTYPE_BFLOAT16) {
    fields.fail("dtypes", "weights of bfloat16");
  }
  ScaleBlocks blocks = fields.block_shape(format.has_block_shape());
  shape.tensor_scale = fields.tensor_scale("tensor_scale", format.may_have_tensor_scale(), format.has_tensor_scale);
  const Json& terms = fields.at("num_terms");
  const int64_t limit = format.number == MXFP4MOE_FORMAT_FLOAT32 ? kMaxTerms[dtypes.weights] : 1;
  shape.num_terms = fields.size("num_terms", terms, 1, limit);
  const Json* const group = fields.find("group_size");
  if ((group != nullptr) != format.has_groups) fields.fail("group_size", "a size with formats of integers alone");
  if (format.has_groups) blocks = {1, fields.group_size("group_size", *group, shape.k)};
  shape.format = packed_format(format, dtypes, blocks);
  shape.has_bias = dtypes.bias >= 0;
  const SingleLayout layout = single_layout(shape);
  if (layout.total < 0) fields.fail("shape", "sizes that fit in memory");
  std::vector<Expected> parts;
  add_parts(layout.matrix, "weight", &parts);
  linear.weight = view_single(shape, find_bytes(file, prefix, 1, parts, layout.total));
  linear.num_bytes = layout.total;
  linear.bytes = file.bytes();
  return linear;
}

}  // namespace mxfp4moe::capi
