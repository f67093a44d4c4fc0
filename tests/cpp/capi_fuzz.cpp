// Random calls of the C interface, most of them wrong: missing pointers, sizes and enumerators that do not exist,
// arrays that overlap, files that are damaged or cut short. Each must give a status, and a message with each that is
// not MXFP4MOE_OK, and leave its results alone then; sanitizers and valgrind watch over the memory, every array being
// an allocation of its own.
//
//   capi_fuzz FOLDER CASES [SEED [THREADS]]    FOLDER holds files of Python: *.experts, *.linear, *.layer
//
// What a program cannot know, such as how much memory lies behind a plain pointer, is right in every call.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "mxfp4moe.h"
#include "random_case.h"

namespace {

using Bytes = std::vector<uint8_t>;
constexpr int64_t kFileExperts = 3;  // of most of the layers in files

struct File {
  std::string kind;
  Bytes content;
};

// The kinds of cases.
class Case : RandomCase {
 public:
  using RandomCase::num_ok, RandomCase::num_refused;

  Case(uint64_t seed, uint64_t number, const std::vector<File>& files, const std::string& path)
      : RandomCase(seed, number), files_(files), path_(path) {}

  void run() {
    void (Case::* const kinds[])() = {&Case::experts, &Case::linear,    &Case::file,
                                      &Case::routing, &Case::quantizer, &Case::small};
    (this->*kinds[draw(std::size(kinds))])();
  }

 private:
  void use(const mxfp4moe_experts* experts) {
    mxfp4moe_experts_info info{};
    info.struct_size = sizeof(info);
    spoil(info.struct_size);
    if (!check(mxfp4moe_get_experts_info(maybe(experts), maybe(&info)))) {
      info.struct_size = sizeof(info);
      if (!check(mxfp4moe_get_experts_info(experts, &info))) fail(seed_, number_, "no information");
    }
    const int64_t tokens = between(0, 9), top_k = between(0, 3);
    const bool uncombined = one_in(3);
    TokenRows hidden = rows(tokens, info.hidden_size);
    TokenRows out = uncombined ? terms(tokens * top_k, info.hidden_size) : rows(tokens, info.hidden_size);
    if (wrong() && !uncombined) out = hidden;
    if (wrong() && hidden.data != nullptr) out.data = static_cast<uint8_t*>(hidden.data) + 4;
    const int64_t num_global = one_in(3) ? between(1, 6) : 0;
    int64_t* map = num_global == 0 ? nullptr : reinterpret_cast<int64_t*>(memory(8 * num_global));
    for (int64_t i = 0; i < num_global; ++i) {
      map[i] = between(-1, info.num_experts - 1);
      spoil(map[i]);
    }
    int32_t* const ids = reinterpret_cast<int32_t*>(memory(4 * tokens * top_k));
    for (int64_t i = 0; i < tokens * top_k; ++i) {
      ids[i] = static_cast<int32_t>(between(-1, (num_global == 0 ? info.num_experts : num_global) - 1));
      spoil(ids[i]);
    }
    mxfp4moe_fused_experts_args args{};
    args.struct_size = sizeof(args);
    args.hidden_states = hidden.data, args.hidden_states_stride = hidden.stride,
    args.hidden_states_dtype = hidden.dtype;
    args.out = out.data, args.out_stride = out.stride, args.out_dtype = out.dtype;
    args.topk_weights = maybe(floats(tokens * top_k));
    args.topk_ids = maybe(ids);
    args.num_tokens = tokens, args.top_k = top_k;
    args.activation =
        info.ungated ? MXFP4MOE_ACTIVATION_RELU2 : static_cast<int32_t>(between(0, MXFP4MOE_ACTIVATION_SITU));
    args.apply_router_weight_on_input = one_in(4);
    args.expert_map = maybe(map), args.num_global_experts = num_global;
    args.activation_format = is_integral(info.format) && is_integral(info.w2_format) && one_in(2);
    args.uncombined = uncombined;
    spoil_count(args.num_global_experts);
    spoil(args.activation_format);
    // The other value would need more memory than there is.
    if (wrong()) args.uncombined = one_in(2) ? -1 : 2;
    spoil(args.struct_size);
    spoil_count(args.num_tokens);
    spoil_count(args.top_k);
    spoil(args.activation);
    spoil(args.apply_router_weight_on_input);
    spoil(args.alpha);
    spoil(args.limit);
    check(mxfp4moe_fused_experts(maybe(experts), maybe(&args), options()));
  }

  void use(const mxfp4moe_linear* linear) {
    mxfp4moe_linear_info info{};
    info.struct_size = sizeof(info);
    expect(check(mxfp4moe_get_linear_info(linear, &info)), "no information");
    const int64_t tokens = between(0, 9);
    const TokenRows hidden = rows(tokens, info.num_columns), out = rows(tokens, info.num_rows);
    const int32_t format = is_integral(info.format) && one_in(2);
    mxfp4moe_linear_args args{sizeof(args), hidden.data,  out.data,  tokens, hidden.stride,
                              out.stride,   hidden.dtype, out.dtype, format};
    spoil(args.activation_format);
    spoil(args.struct_size);
    spoil_count(args.num_tokens);
    check(mxfp4moe_apply_linear(maybe(linear), maybe(&args), options()));
  }

  void use(const mxfp4moe_layer* layer) {
    mxfp4moe_layer_info info{};
    info.struct_size = sizeof(info);
    expect(check(mxfp4moe_get_layer_info(layer, &info)), "no information");
    const int64_t tokens = between(0, 9);
    const TokenRows hidden = rows(tokens, info.hidden_size), out = rows(tokens, info.hidden_size);
    const TokenRows router = rows(tokens, info.hidden_size);
    int64_t* const ids = reinterpret_cast<int64_t*>(memory(8 * tokens));
    for (int64_t i = 0; i < tokens; ++i) {
      ids[i] = between(0, 7);
      spoil(ids[i]);
    }
    mxfp4moe_layer_args args{
        sizeof(args), hidden.data, out.data, tokens, hidden.stride, out.stride, hidden.dtype, out.dtype, nullptr,
        nullptr,      0,           0,        0};
    if (info.needs_input_ids || wrong()) args.input_ids = maybe(ids);
    if (info.needs_router_hidden_states || wrong()) {
      args.router_hidden_states = router.data;
      args.router_hidden_states_stride = router.stride, args.router_hidden_states_dtype = router.dtype;
    }
    args.propagate_nonfinite = one_in(2);
    spoil(args.struct_size);
    spoil_count(args.num_tokens);
    spoil(args.propagate_nonfinite);
    if (one_in(2)) {
      check(mxfp4moe_apply_layer(maybe(layer), maybe(&args), options()));
    } else {
      float* const weights = floats(tokens * info.top_k);
      int32_t* const chosen = reinterpret_cast<int32_t*>(memory(4 * tokens * info.top_k));
      check(mxfp4moe_route_layer(maybe(layer), maybe(&args), wrong() ? nullptr : weights, wrong() ? nullptr : chosen,
                                 options()));
    }
  }

  // Looks at a handle that a call has made or left alone, uses and closes it.
  template <class Handle>
  void finish(bool made, Handle* handle, Handle* before, void (*close)(Handle*)) {
    if (!made) {
      expect(handle == before, "a refused call wrote its result");
      return;
    }
    for (int64_t i = between(1, 2); i > 0; --i) use(handle);
    close(handle);
  }

  void experts() {
    const int64_t count = between(1, 3), k = kGroup * between(1, 3), inner = kGroup * between(1, 2);
    mxfp4moe_experts_arrays a{};
    a.struct_size = sizeof(a);
    a.format = static_cast<int32_t>(between(MXFP4MOE_FORMAT_MXFP4, MXFP4MOE_FORMAT_INT8));
    a.gate_up_layout = one_in(2);
    a.ungated = one_in(4);
    if (a.ungated) a.gate_up_layout = 0;
    a.num_experts = count, a.hidden_size = k, a.intermediate_size = inner;
    if (one_in(3)) a.w2_format = static_cast<int32_t>(between(MXFP4MOE_FORMAT_MXFP4, MXFP4MOE_FORMAT_INT8));
    const int32_t w2_format = a.w2_format == 0 ? a.format : a.w2_format;
    if (a.format == MXFP4MOE_FORMAT_FP8_BLOCK || w2_format == MXFP4MOE_FORMAT_FP8_BLOCK) {
      a.block_rows = a.block_columns = kGroup;
    }
    if (has_groups(a.format)) a.w13_group_size = group_size();
    if (has_groups(w2_format)) a.w2_group_size = group_size();
    const Matrix w13 = matrix(a.format, {count, (a.ungated ? 1 : 2) * inner, k, a.w13_group_size}),
                 w2 = matrix(w2_format, {count, k, inner, a.w2_group_size});
    if (one_in(4)) a.w13_columns = columns(count, k);
    a.w13 = w13.weights, a.w13_scales = w13.scales, a.w13_zero_points = w13.zeros;
    a.w13_tensor_scale = w13.tensor_scale, a.w13_bias = w13.bias, a.w13_offsets = w13.offsets;
    a.w2 = w2.weights, a.w2_scales = w2.scales, a.w2_zero_points = w2.zeros;
    a.w2_tensor_scale = w2.tensor_scale, a.w2_bias = w2.bias, a.w2_offsets = w2.offsets;
    for (int32_t* field : {&a.format, &a.gate_up_layout, &a.ungated, &a.w2_format}) spoil(*field);
    for (int64_t* field : {&a.num_experts, &a.hidden_size, &a.intermediate_size, &a.block_rows, &a.block_columns,
                           &a.w13_group_size, &a.w2_group_size}) {
      spoil(*field);
    }
    spoil(a.struct_size);
    mxfp4moe_experts *const before = reinterpret_cast<mxfp4moe_experts*>(&a), *handle = before;
    const bool made = check(mxfp4moe_pack_experts(maybe(&a), options(), wrong() ? nullptr : &handle));
    finish(made, handle, before, mxfp4moe_close_experts);
  }

  void linear() {
    mxfp4moe_linear_arrays a{};
    a.struct_size = sizeof(a);
    a.format = static_cast<int32_t>(between(MXFP4MOE_FORMAT_MXFP4, MXFP4MOE_FORMAT_FLOAT32));
    a.num_rows = between(1, 70), a.num_columns = kGroup * between(1, 4);
    if (a.format == MXFP4MOE_FORMAT_FP8_BLOCK) a.block_rows = a.block_columns = kGroup;
    if (has_groups(a.format)) a.group_size = group_size();
    const Matrix m = matrix(a.format, {1, a.num_rows, a.num_columns, a.group_size});
    a.offsets = m.offsets;
    a.weight = m.weights, a.scales = m.scales, a.zero_points = m.zeros, a.tensor_scale = m.tensor_scale,
    a.bias = m.bias;
    spoil(a.format);
    for (int64_t* field : {&a.num_rows, &a.num_columns, &a.block_rows, &a.block_columns, &a.group_size}) spoil(*field);
    spoil(a.struct_size);
    mxfp4moe_linear *const before = reinterpret_cast<mxfp4moe_linear*>(&a), *handle = before;
    const bool made = check(mxfp4moe_pack_linear(maybe(&a), options(), wrong() ? nullptr : &handle));
    finish(made, handle, before, mxfp4moe_close_linear);
  }

  template <class Handle, class Open>
  void open(Open&& function, int32_t verify, void (*close)(Handle*)) {
    Handle *const before = reinterpret_cast<Handle*>(this), *handle = before;
    const bool made =
        check(function(wrong() ? nullptr : path_.c_str(), verify, options(), wrong() ? nullptr : &handle));
    finish(made, handle, before, close);
  }

  // Some experts of a layer, by ids that are mostly right.
  void open_slice(int32_t verify) {
    const int64_t count = between(1, 2);
    int64_t* const ids = reinterpret_cast<int64_t*>(memory(8 * count));
    for (int64_t i = 0; i < count; ++i) {
      ids[i] = (i + 1) % kFileExperts;
      spoil(ids[i]);
    }
    int64_t num_ids = count;
    spoil_count(num_ids);
    const auto function = [&](const char* path, int32_t checked, const mxfp4moe_options* options,
                              mxfp4moe_layer** layer) {
      return mxfp4moe_open_layer_slice(path, checked, maybe(ids), num_ids, options, layer);
    };
    open<mxfp4moe_layer>(function, verify, mxfp4moe_close_layer);
  }

  // A file as Python wrote it, or with some bytes changed, cut, or longer; opened as what it is or as something else.
  void file() {
    const File& file = files_[draw(files_.size())];
    Bytes content = file.content;
    const bool damaged = is_wrong_ && one_in(2);
    if (damaged) {
      const uint64_t head = std::min<uint64_t>(content.size(), 4096);
      for (int64_t i = between(0, 4); i > 0; --i) {
        content[draw(one_in(2) ? head : content.size())] =
            one_in(2) ? static_cast<uint8_t>(random_()) : static_cast<uint8_t>("0123456789\"{}[],:-e\\"[draw(20)]);
      }
      if (one_in(3)) content.resize(draw(content.size() + 1));
      if (one_in(8)) content.resize(content.size() + draw(5000));
    }
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    int32_t verify = one_in(2);
    spoil(verify);
    std::string kind = file.kind;
    if (wrong()) kind = files_[draw(files_.size())].kind;
    if (kind == "experts") open<mxfp4moe_experts>(mxfp4moe_open_experts, verify, mxfp4moe_close_experts);
    if (kind == "linear") open<mxfp4moe_linear>(mxfp4moe_open_linear, verify, mxfp4moe_close_linear);
    if (kind == "layer" && one_in(3)) return open_slice(verify);
    if (kind == "layer") open<mxfp4moe_layer>(mxfp4moe_open_layer, verify, mxfp4moe_close_layer);
  }

  void routing() {
    mxfp4moe_routing routing{};
    routing.struct_size = sizeof(routing);
    spoil(routing.struct_size);
    if (!check(mxfp4moe_init_routing(maybe(&routing)))) return;
    const int64_t tokens = between(0, 9), logits = between(1, 24), shared = one_in(4) ? between(0, 2) : 0;
    const int64_t top_k = between(1, std::max<int64_t>(1, logits - shared));
    routing.scoring = static_cast<int32_t>(between(0, 4));
    routing.select_by_logit = one_in(4);
    routing.ids_given = one_in(8);
    routing.num_shared_experts = shared;
    if (one_in(3)) routing.num_groups = between(1, 4), routing.topk_group = between(1, 4);
    routing.renormalize = one_in(2);
    routing.group_score = one_in(2);
    routing.zero_masked_groups = one_in(2);
    if (one_in(3)) routing.correction_bias = floats(std::max<int64_t>(logits - shared, 0));
    if (one_in(3)) routing.expert_scale = floats(logits);
    for (int32_t* field : {&routing.scoring, &routing.select_by_logit, &routing.ids_given, &routing.group_score,
                           &routing.zero_masked_groups, &routing.renormalize}) {
      spoil(*field);
    }
    for (int64_t* field : {&routing.num_groups, &routing.topk_group}) spoil(*field);
    for (double* field : {&routing.logit_softcap, &routing.jitter_eps, &routing.norm_order, &routing.norm_epsilon,
                          &routing.norm_floor, &routing.routed_scaling_factor}) {
      spoil(*field);
    }
    int32_t* const ids = reinterpret_cast<int32_t*>(memory(4 * tokens * (top_k + shared)));
    if (one_in(2)) {
      for (int64_t i = 0; i < tokens * (top_k + shared); ++i) ids[i] = static_cast<int32_t>(between(-1, logits));
    }
    mxfp4moe_route_args args{
        sizeof(args), floats(tokens * logits), floats(tokens * (top_k + shared)), ids, tokens, logits, top_k};
    if (wrong()) args.topk_weights = const_cast<float*>(args.router_logits);
    if (wrong()) args.router_logits = nullptr;
    if (wrong()) args.topk_weights = nullptr;
    if (wrong()) args.topk_ids = nullptr;
    spoil_count(args.num_tokens);
    if (wrong()) args.num_logits = one_in(2) ? -1 : INT64_MAX;
    if (wrong()) args.top_k = one_in(2) ? -1 : INT64_MAX;
    spoil(args.struct_size);
    check(mxfp4moe_route(maybe(&routing), maybe(&args), options()));
  }

  mxfp4moe_buffer buffer(int64_t bytes) {
    mxfp4moe_buffer result{memory(bytes), static_cast<uint64_t>(bytes)};
    if (wrong()) result.data = nullptr;
    if (wrong() && bytes > 0) result.size -= 1 + draw(result.size);
    if (wrong()) result = {nullptr, 0};
    return result;
  }

  void quantizer() {
    mxfp4moe_quantize_shape s{};
    s.struct_size = sizeof(s);
    s.format = static_cast<int32_t>(between(MXFP4MOE_FORMAT_MXFP4, MXFP4MOE_FORMAT_INT8));
    s.values_dtype = static_cast<int32_t>(between(MXFP4MOE_DTYPE_FLOAT32, MXFP4MOE_DTYPE_FLOAT64));
    s.e5m2 = s.format == MXFP4MOE_FORMAT_MXFP8 && one_in(2);
    if (s.format <= MXFP4MOE_FORMAT_MXFP8) s.scale_rule = static_cast<int32_t>(between(0, 3));
    s.nonfinite_is_nan = s.format <= MXFP4MOE_FORMAT_MXFP8 && one_in(2);
    s.num_matrices = between(1, 3), s.num_rows = between(1, 40), s.num_columns = kGroup * between(1, 4);
    const bool integers = s.format >= MXFP4MOE_FORMAT_INT4, blocks = s.format == MXFP4MOE_FORMAT_FP8_BLOCK;
    if (s.format == MXFP4MOE_FORMAT_BF16) s.format = MXFP4MOE_FORMAT_NVFP4;
    const int64_t block = blocks || (integers && one_in(2)) ? kGroup : 0;
    if (blocks) s.block_rows = s.block_columns = block;
    if (integers) s.group_size = block;
    const FormatArrays of = arrays_of(s.format);
    const int64_t matrices = s.num_matrices, rows = matrices * s.num_rows, count = rows * s.num_columns,
                  codes = count / of.per_byte;
    int64_t num_scales = of.per_scale > 0 ? count / of.per_scale : rows * (block == 0 ? 1 : s.num_columns / block);
    if (blocks) num_scales = s.num_matrices * ((s.num_rows + block - 1) / block) * (s.num_columns / block);
    const bool zeros = integers && one_in(2);
    spoil(s.struct_size);
    for (int32_t* field : {&s.format, &s.values_dtype, &s.e5m2, &s.scale_rule, &s.nonfinite_is_nan}) spoil(*field);
    for (int64_t* field :
         {&s.num_matrices, &s.num_rows, &s.num_columns, &s.block_rows, &s.block_columns, &s.group_size})
      spoil(*field);
    const int64_t value_bytes = count * dtype_size(s.values_dtype),
                  scale_bytes = num_scales * dtype_size(of.scale_dtype);
    if (one_in(2)) {
      mxfp4moe_quantized q{sizeof(q), buffer(codes), buffer(scale_bytes), {}, {}};
      if (zeros) q.zero_points = buffer(num_scales);
      if (s.format == MXFP4MOE_FORMAT_NVFP4) q.tensor_scales = buffer(4 * matrices);
      spoil(q.struct_size);
      check(mxfp4moe_quantize(maybe(&s), array(count, s.values_dtype), maybe(&q), options()));
    } else {
      mxfp4moe_quantized_arrays q{sizeof(q), array(codes, of.dtype), array(num_scales, of.scale_dtype), {}, {}};
      if (s.e5m2 == 1 && !wrong()) q.codes.dtype = MXFP4MOE_DTYPE_FLOAT8_E5M2;
      if (zeros) q.zero_points = zero_points(num_scales, s.format == MXFP4MOE_FORMAT_INT4);
      if (s.format == MXFP4MOE_FORMAT_NVFP4) q.tensor_scales = array(matrices, MXFP4MOE_DTYPE_FLOAT32);
      spoil(q.struct_size);
      check(mxfp4moe_dequantize(maybe(&s), maybe(&q), buffer(value_bytes), options()));
    }
  }

  // The functions that have no arrays.
  void small() {
    const int32_t isa = static_cast<int32_t>(odd_number());
    const int32_t supported = mxfp4moe_isa_supported(isa);
    expect(supported == 0 || supported == 1, "neither 0 nor 1");
    expect(mxfp4moe_isa_supported(mxfp4moe_best_isa()) == 1, "the best instruction set is not supported");
    expect(mxfp4moe_abi_version() == MXFP4MOE_ABI_VERSION && mxfp4moe_version()[0] != 0, "another version");
    expect(mxfp4moe_available_threads() > 0 && mxfp4moe_num_pool_threads() >= 0, "a number of threads");
    mxfp4moe_close_experts(nullptr);
    mxfp4moe_close_linear(nullptr);
    mxfp4moe_close_layer(nullptr);
    expect(!check(mxfp4moe_get_experts_info(nullptr, nullptr)), "a missing handle was accepted");
    expect(!check(mxfp4moe_get_linear_info(nullptr, nullptr)), "a missing handle was accepted");
    expect(!check(mxfp4moe_get_layer_info(nullptr, nullptr)), "a missing handle was accepted");
    if (one_in(50)) mxfp4moe_release_pool_threads();
  }

  const std::vector<File>& files_;
  const std::string path_;
};

std::vector<File> read_files(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string kind = entry.path().extension().string();
    if (kind == ".experts" || kind == ".linear" || kind == ".layer") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<File> files;
  for (const auto& path : paths) {
    std::ifstream stream(path, std::ios::binary);
    files.push_back({path.extension().string().substr(1), Bytes(std::istreambuf_iterator<char>(stream), {})});
  }
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: capi_fuzz FOLDER CASES [SEED [THREADS]]\n"), 2;
  const std::string folder = argv[1];
  const uint64_t count = std::strtoull(argv[2], nullptr, 10), seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
  const int num_threads = argc > 4 ? std::atoi(argv[4]) : 1;
  const std::vector<File> files = read_files(folder);
  if (files.empty()) return std::fprintf(stderr, "%s: no packed files\n", folder.c_str()), 2;
  std::atomic<uint64_t> next{0}, num_ok{0}, num_refused{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, path = folder + "/thread-" + std::to_string(i)] {
      for (uint64_t number; (number = next++) < count;) {
        Case one(seed, number, files, path);
        one.run();
        num_ok += one.num_ok, num_refused += one.num_refused;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%llu cases: %llu calls computed, %llu refused\n", static_cast<unsigned long long>(count),
              static_cast<unsigned long long>(num_ok.load()), static_cast<unsigned long long>(num_refused.load()));
  return 0;
}
