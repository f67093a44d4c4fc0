// Everything that computes, from several threads at once: experts, matrices, routing, quantizers and attention share
// the pool and the workspaces. For -fsanitize=thread. Each result must be the bits that one thread alone computes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "attention/attention.h"
#include "attention/kv_page.h"
#include "attention/rotary.h"
#include "kernels/registry.h"
#include "linear/linear.h"
#include "linear/rms_norm.h"
#include "moe/schedule.h"
#include "packing/storage.h"
#include "quantize/quantize.h"
#include "routing/routing.h"
#include "threads/nodes.h"
#include "threads/pool.h"

using namespace mxfp4moe;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (0)

namespace {

constexpr int kCallers = 3;
using Random = std::mt19937_64;
using Bytes = std::vector<uint8_t>;

int64_t between(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

std::vector<float> floats(Random& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> result(static_cast<size_t>(count));
  for (float& value : result) value = normal(random);
  return result;
}

Bytes bytes(Random& random, int64_t count, int64_t low, int64_t high) {
  Bytes result(static_cast<size_t>(count));
  for (uint8_t& value : result) value = static_cast<uint8_t>(between(random, low, high));
  return result;
}

uint8_t* as_bytes(std::vector<float>& values) { return reinterpret_cast<uint8_t*>(values.data()); }
const uint8_t* as_bytes(const std::vector<float>& values) { return reinterpret_cast<const uint8_t*>(values.data()); }

// A computation whose inputs are made once and only read: `run` gives all its results as bytes.
class Work {
 public:
  virtual ~Work() = default;
  virtual Bytes run(const KernelTable& kernels, int num_threads) const = 0;
};

// The first byte that is aligned for the kernels; there is room for 64 more than are needed.
size_t to_aligned(const Bytes& storage) { return (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64; }
const uint8_t* aligned(const Bytes& storage) { return storage.data() + to_aligned(storage); }
uint8_t* aligned(Bytes& storage) { return storage.data() + to_aligned(storage); }

// Blocks of float32 scales are groups of a row in integer formats.
MatrixFormat random_format(Random& random, WeightFormat format) {
  const int64_t rows = is_integer(format) ? 1 : 16 * between(random, 0, 2);
  const int64_t k = is_integer(format) ? 32 * between(random, 0, 3) : 0;
  return {format, rows, k, DType::kFloat32};
}

// Weights become random bytes below the NaN codes of every element, scales random exponents.
void fill(Random& random, const MatrixLayout& m, int64_t num_experts, uint8_t* data) {
  const auto put = [&](Part part, const Bytes& content) {
    std::memcpy(data + m.offset[static_cast<int>(part)], content.data(), content.size());
  };
  const auto size = [&](Part part) { return num_experts * m.expert_bytes[static_cast<int>(part)]; };
  put(Part::kWeights, bytes(random, size(Part::kWeights), 0, 63));
  put(Part::kScales, bytes(random, size(Part::kScales), 118, 122));
  for (Part part : {Part::kSumScales, Part::kBias}) {
    const std::vector<float> values = floats(random, size(part) / 4);
    put(part, Bytes(as_bytes(values), as_bytes(values) + size(part)));
  }
}

class Experts : public Work {
 public:
  Experts(Random& random, WeightFormat format)
      : shape_(random_shape(random, format)), num_tokens_(between(random, 1, 40)), top_k_(between(random, 1, 3)) {
    const StorageLayout layout = storage_layout(shape_);
    storage_.resize(static_cast<size_t>(layout.total) + 64);
    for (const MatrixLayout* m : {&layout.w13, &layout.w2}) fill(random, *m, shape_.num_experts, aligned(storage_));
    hidden_ = floats(random, num_tokens_ * shape_.hidden_size);
    weights_ = floats(random, num_tokens_ * top_k_);
    for (int64_t i = 0; i < num_tokens_ * top_k_; ++i)
      ids_.push_back(static_cast<int32_t>(between(random, -1, shape_.num_experts - 1)));
    int kind = 0;
    do {
      kind = static_cast<int>(random() % kNumActivations);
    } while (kActivations[kind].gated != shape_.gated);
    activation_ = {static_cast<ActivationKind>(kind), 1.702f, 7.0f};
  }

  Bytes run(const KernelTable& kernels, int num_threads) const override {
    const int64_t stride = shape_.hidden_size * 4;
    Bytes out(static_cast<size_t>(num_tokens_ * stride));
    MoeProblem problem{view_storage(shape_, aligned(storage_)),
                       {const_cast<uint8_t*>(as_bytes(hidden_)), stride, DType::kFloat32},
                       {out.data(), stride, DType::kFloat32},
                       weights_.data(),
                       ids_.data(),
                       num_tokens_,
                       top_k_,
                       activation_,
                       false,
                       true};
    CHECK(fused_experts(kernels, problem, num_threads) == Status::kOk);
    return out;
  }

 private:
  static StorageShape random_shape(Random& random, WeightFormat format) {
    StorageShape shape{};
    shape.w13 = shape.w2 = random_format(random, format);
    shape.num_experts = between(random, 1, 5);
    shape.hidden_size = 32 * between(random, 1, 6);
    shape.intermediate_size = 32 * between(random, 1, 6);
    shape.gated = random() % 4 != 0;
    shape.has_w13_bias = shape.has_w2_bias = true;
    shape.tensor_scales = format == WeightFormat::kNvfp4;
    shape.interleaved = random() % 2 == 0;
    return shape;
  }

  StorageShape shape_;
  Bytes storage_;
  int64_t num_tokens_, top_k_;
  std::vector<float> hidden_, weights_;
  std::vector<int32_t> ids_;
  Activation activation_;
};

class Linear : public Work {
 public:
  Linear(Random& random, WeightFormat format)
      : shape_(random_shape(random, format)), num_tokens_(between(random, 1, 60)) {
    const SingleLayout layout = single_layout(shape_);
    storage_.resize(static_cast<size_t>(layout.total) + 64);
    fill(random, layout.matrix, 1, aligned(storage_));
    hidden_ = floats(random, num_tokens_ * shape_.k);
  }

  Bytes run(const KernelTable& kernels, int num_threads) const override {
    Bytes out(static_cast<size_t>(num_tokens_ * shape_.num_rows) * 4);
    const LinearProblem problem{shape_,
                                view_single(shape_, aligned(storage_)),
                                {const_cast<uint8_t*>(as_bytes(hidden_)), shape_.k * 4, DType::kFloat32},
                                {out.data(), shape_.num_rows * 4, DType::kFloat32},
                                num_tokens_};
    CHECK(linear(kernels, problem, num_threads) == Status::kOk);
    return out;
  }

 private:
  static MatrixShape random_shape(Random& random, WeightFormat format) {
    MatrixShape shape{};
    shape.format = random_format(random, format);
    shape.num_rows = between(random, 1, 70);
    shape.k = 32 * between(random, 1, 9);
    shape.num_terms = format == WeightFormat::kBf16 ? between(random, 1, 3) : 1;
    shape.has_bias = true;
    shape.tensor_scale = format == WeightFormat::kNvfp4;
    return shape;
  }

  MatrixShape shape_;
  int64_t num_tokens_;
  Bytes storage_;
  std::vector<float> hidden_;
};

class RoutedTokens : public Work {
 public:
  explicit RoutedTokens(Random& random)
      : num_groups_(between(random, 1, 4)),
        num_experts_(num_groups_ * between(random, 4, 30)),
        num_tokens_(between(random, 1, 400)),
        scoring_(static_cast<Scoring>(random() % 3)),
        logits_(floats(random, num_tokens_ * num_experts_)),
        bias_(floats(random, num_experts_)) {}

  Bytes run(const KernelTable&, int num_threads) const override {
    const int64_t top_k = 4;
    std::vector<float> weights(static_cast<size_t>(num_tokens_ * top_k));
    std::vector<int32_t> ids(weights.size());
    const bool softmax = scoring_ == Scoring::kSoftmax;
    RoutingRule rule{};
    rule.score.scoring = scoring_;
    rule.choice.num_groups = softmax ? 1 : num_groups_;
    rule.choice.topk_group = 1;
    rule.weight = {true, 1.0f, 1e-20f, 0.0f, 2.5f};
    RoutingArgs args{};
    args.logits = logits_.data();
    args.correction_bias = softmax ? nullptr : bias_.data();
    args.num_tokens = num_tokens_;
    args.num_experts = num_experts_;
    args.num_slots = top_k;
    args.rule = rule;
    args.topk_weights = weights.data();
    args.topk_ids = ids.data();
    CHECK(route(args, num_threads) == kRouted);
    Bytes result(as_bytes(weights), as_bytes(weights) + weights.size() * 4);
    const uint8_t* more = reinterpret_cast<const uint8_t*>(ids.data());
    result.insert(result.end(), more, more + ids.size() * 4);
    return result;
  }

 private:
  int64_t num_groups_, num_experts_, num_tokens_;
  Scoring scoring_;
  std::vector<float> logits_, bias_;
};

// To each format and back.
class Quantized : public Work {
 public:
  explicit Quantized(Random& random)
      : rows_(between(random, 1, 300)),
        columns_(32 * between(random, 1, 20)),
        element_(static_cast<MxElement>(random() % 3)),
        rule_(static_cast<ScaleRule>(random() % 4)),
        values_(floats(random, rows_ * columns_)) {}

  Bytes run(const KernelTable& kernels, int num_threads) const override {
    Bytes result;
    std::vector<float> back(values_.size());
    const auto keep = [&](const Bytes& codes) {
      result.insert(result.end(), codes.begin(), codes.end());
      result.insert(result.end(), as_bytes(back), as_bytes(back) + back.size() * 4);
    };
    const int64_t count = rows_ * columns_;
    Bytes codes(values_.size()), scales(values_.size() / 16);
    const uint8_t* values = as_bytes(values_);

    quantize_mx(kernels, {values, DType::kFloat32, element_, rule_, count / 32, codes.data(), scales.data()},
                num_threads);
    dequantize_mx(kernels, {codes.data(), scales.data(), element_, DType::kFloat32, count / 32, as_bytes(back)},
                  num_threads);
    keep(codes);

    float tensor_scale = 0;
    quantize_nvfp4(kernels, {values, DType::kFloat32, 1.0f, count / 16, codes.data(), scales.data()}, 1, &tensor_scale,
                   false, num_threads);
    dequantize_nvfp4(kernels, {codes.data(), scales.data(), 1.0f, DType::kFloat32, count / 16, as_bytes(back)}, 1,
                     &tensor_scale, num_threads);
    keep(codes);

    const ScaleBlockGrid grid{1, rows_, columns_, 24, 64};
    std::vector<float> tiles(static_cast<size_t>(ceil_div(rows_, 24) * ceil_div(columns_, 64)));
    quantize_fp8_block(kernels, grid, {values, DType::kFloat32, rows_, columns_, columns_}, codes.data(), tiles.data(),
                       num_threads);
    dequantize_fp8_block(kernels, grid,
                         {codes.data(), 1.0f, rows_, columns_, columns_, DType::kFloat32, as_bytes(back)}, tiles.data(),
                         num_threads);
    keep(codes);
    return result;
  }

 private:
  int64_t rows_, columns_;
  MxElement element_;
  ScaleRule rule_;
  std::vector<float> values_;
};

const AttentionKernels& attention_of(const KernelTable& kernels) {
  int table = 0;
  while (&kernel_table(table) != &kernels) ++table;
  return attention_kernels(table);
}

// Keys are normed, turned and put into pages; two sequences then share the pages, and the attention of each is
// computed.
class Attended : public Work {
 public:
  explicit Attended(Random& random)
      : layout_{between(random, 1, 3), 2 * between(random, 1, 40), random() % 2 ? DType::kFloat32 : DType::kBFloat16},
        group_(between(random, 1, 5)),
        length_(between(random, 2, 1300)),
        num_queries_(between(random, 1, std::min<int64_t>(length_, 90))),
        queries_(floats(random, num_queries_ * num_heads() * layout_.head_dim)),
        keys_(floats(random, length_ * layout_.num_kv_heads * layout_.head_dim)),
        frequencies_(static_cast<size_t>(layout_.head_dim / 2), 0.01),
        positions_(static_cast<size_t>(length_)) {
    std::iota(positions_.begin(), positions_.end(), 0);
  }

  Bytes run(const KernelTable& kernels, int num_threads) const override {
    const int64_t dim = layout_.head_dim, heads = layout_.num_kv_heads;
    std::vector<float> keys(keys_.size());
    rms_norm({{const_cast<uint8_t*>(as_bytes(keys_)), dim * 4, DType::kFloat32},
              {as_bytes(keys), dim * 4, DType::kFloat32},
              length_ * heads,
              dim,
              frequencies_.size() > 9 ? keys_.data() : nullptr,
              1e-6},
             num_threads);
    rotary({keys.data(), keys.data(), length_, heads, dim, dim / 2, false, positions_.data(), frequencies_.data(), 1.0},
           num_threads);
    const int64_t num_pages = ceil_div(length_, kBlockPositions);
    Bytes memory(static_cast<size_t>(num_pages * page_bytes(layout_)));
    std::vector<uint8_t*> pages;
    for (int64_t i = 0; i < num_pages; ++i) pages.push_back(memory.data() + i * page_bytes(layout_));
    fill_pages(layout_, {keys.data(), keys_.data(), 0, length_}, pages.data(), num_threads);

    Bytes out(2 * queries_.size() * 4);
    std::vector<AttentionSequence> sequences;
    for (int64_t i = 0; i < 2; ++i) {
      sequences.push_back(
          {queries_.data(), num_queries_ - i, pages.data(), length_ - i, out.data() + i * out.size() / 2});
    }
    const AttentionProblem problem{sequences.data(), 2,    layout_,         num_heads(),
                                   1 + length_ / 2,  0.3f, queries_.data(), DType::kFloat32};
    CHECK(attention(attention_of(kernels), problem, num_threads) == Status::kOk);
    return out;
  }

 private:
  int64_t num_heads() const { return group_ * layout_.num_kv_heads; }

  KVLayout layout_;
  int64_t group_, length_, num_queries_;
  std::vector<float> queries_, keys_;
  std::vector<double> frequencies_;
  std::vector<int64_t> positions_;
};

std::vector<std::unique_ptr<Work>> make_work(Random& random) {
  std::vector<std::unique_ptr<Work>> work;
  for (int format = 0; format < kNumWeightFormats; ++format) {
    work.push_back(std::make_unique<Experts>(random, static_cast<WeightFormat>(format)));
    work.push_back(std::make_unique<Linear>(random, static_cast<WeightFormat>(format)));
  }
  work.push_back(std::make_unique<RoutedTokens>(random));
  work.push_back(std::make_unique<Quantized>(random));
  work.push_back(std::make_unique<Attended>(random));
  return work;
}

// Several callers run all of the work at once, in other orders, each with up to four threads.
void run_round(const KernelTable& kernels, uint64_t seed) {
  Random random(seed);
  const auto work = make_work(random);
  std::vector<Bytes> expected;
  for (const auto& each : work) expected.push_back(each->run(kernels, 1));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (size_t i = 0; i < work.size(); ++i) {
        const size_t index = (i + static_cast<size_t>(caller) * 3) % work.size();
        CHECK(work[index]->run(kernels, 1 + static_cast<int>(i + caller) % 4) == expected[index]);
        if (i % 5 == 4) release_workers();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  const int num_rounds = argc > 2 ? std::atoi(argv[2]) : 5;
  for (int nodes : {0, 2}) {
    simulate_nodes(nodes);
    for (int table = 0; table < num_kernel_tables(); ++table) {
      if (!kernel_table_supported(table)) continue;
      std::printf("%s, %d rounds, seed %llu\n", kernel_table(table).name, num_rounds,
                  static_cast<unsigned long long>(seed));
      for (int round = 0; round < num_rounds; ++round)
        run_round(kernel_table(table), seed * 1000 + static_cast<uint64_t>(round));
    }
  }
  std::puts("ok");
  return 0;
}
