#include "decoder/self_attention.h"

#include <algorithm>
#include <cstring>

#include "attention/attention.h"
#include "attention/rotary.h"
#include "linear/rms_norm.h"
#include "memory/workspace.h"
#include "threads/split.h"

namespace mxfp4moe {
namespace {

Rows float_rows(float* data, int64_t row_floats) {
  return {reinterpret_cast<uint8_t*>(data), row_floats * 4, DType::kFloat32};
}

Rows bf16_rows(uint16_t* data, int64_t row_values) {
  return {reinterpret_cast<uint8_t*>(data), row_values * 2, DType::kBFloat16};
}

// Holds the numbers that one call has between its operations, which are done one after another.
class Call {
 public:
  Call(const SelfAttention& layer, const DecoderStep& step, int num_threads)
      : l_(layer),
        step_(step),
        num_threads_(num_threads),
        query_floats_(layer.num_heads * layer.layout.head_dim),
        key_floats_(layer.layout.num_kv_heads * layer.layout.head_dim) {}

  Status run(const MatrixKernels& kernels, const AttentionKernels& attention_kernels) {
    Arena sizes(nullptr);
    take(&sizes);
    const Workspace workspace(sizes.used());
    if (workspace.data() == nullptr) return Status::kOutOfMemory;
    Arena arena(workspace.data());
    take(&arena);
    rms_norm({float_rows(step_.residual, l_.hidden_size), bf16_rows(read_, l_.hidden_size), step_.num_tokens,
              l_.hidden_size, l_.input_norm, l_.norm_epsilon},
             num_threads_);
    Status status = project(kernels);
    if (status != Status::kOk) return status;
    split_heads();
    turn_heads();
    fill_caches();
    status = attend(attention_kernels);
    if (status != Status::kOk) return status;
    status = multiply(kernels, problem(l_.output, bf16_rows(read_, query_floats_), sums_, l_.hidden_size));
    add_sums();
    return status;
  }

 private:
  void take(Arena* arena) {
    const int64_t tokens = step_.num_tokens, all = query_floats_ + 2 * key_floats_;
    read_ = arena->take<uint16_t>(tokens * std::max(l_.hidden_size, query_floats_));
    sums_ = arena->take<float>(tokens * std::max(l_.hidden_size, all));
    queries_ = arena->take<float>(tokens * query_floats_);
    keys_ = arena->take<float>(tokens * key_floats_);
    values_ = arena->take<float>(tokens * key_floats_);
    sequences_ = arena->take<AttentionSequence>(step_.num_sequences);
  }

  LinearProblem problem(const Linear& matrix, const Rows& read, float* out, int64_t row_floats) const {
    return {matrix.shape, matrix.weight, read, float_rows(out, row_floats), step_.num_tokens};
  }

  Status multiply(const MatrixKernels& kernels, const LinearProblem& p) const {
    const bool preferred = kernels.preferred.weights[static_cast<int>(p.weight.format)].accumulate != nullptr;
    return linear(preferred ? kernels.preferred : kernels.table, p, num_threads_);
  }

  // Writes queries, keys and values of each token side by side.
  Status project(const MatrixKernels& kernels) {
    float* out = sums_;
    for (int64_t i = 0; i < l_.num_projections; ++i) {
      const Linear& matrix = l_.projections[i];
      const Rows read = bf16_rows(read_, l_.hidden_size);
      const Status status = multiply(kernels, problem(matrix, read, out, query_floats_ + 2 * key_floats_));
      if (status != Status::kOk) return status;
      out += matrix.shape.num_rows;
    }
    return Status::kOk;
  }

  // Calls f(first, count) for parts of `num_units` units of work, each of so many values.
  template <class F>
  void split(int64_t num_units, int64_t values, F&& f) const {
    split_units(num_units, values, num_threads_, [&](int64_t begin, int64_t end) { f(begin, end - begin); });
  }

  void split_heads() {
    const int64_t all = query_floats_ + 2 * key_floats_;
    split(step_.num_tokens, all, [&](int64_t first, int64_t count) {
      for (int64_t t = first; t < first + count; ++t) {
        const float* from = sums_ + t * all;
        std::memcpy(queries_ + t * query_floats_, from, static_cast<size_t>(query_floats_) * 4);
        std::memcpy(keys_ + t * key_floats_, from + query_floats_, static_cast<size_t>(key_floats_) * 4);
        std::memcpy(values_ + t * key_floats_, from + query_floats_ + key_floats_,
                    static_cast<size_t>(key_floats_) * 4);
      }
    });
  }

  void norm_heads(float* heads, int64_t token_floats, const float* weight) const {
    const int64_t k = l_.norms_whole ? token_floats : l_.layout.head_dim;
    const Rows rows = float_rows(heads, k);
    rms_norm({rows, rows, step_.num_tokens * token_floats / k, k, weight, l_.norm_epsilon}, num_threads_);
  }

  // NaN stays NaN.
  void clip_heads(float* heads, int64_t token_floats) const {
    split(step_.num_tokens, token_floats, [&](int64_t first, int64_t count) {
      for (float* x = heads + first * token_floats; x < heads + (first + count) * token_floats; ++x) {
        *x = *x < -l_.clip ? -l_.clip : *x > l_.clip ? l_.clip : *x;
      }
    });
  }

  void rotate(float* heads, int64_t num_heads) const {
    rotary({heads, heads, step_.num_tokens, num_heads, l_.layout.head_dim, l_.num_pairs, false, step_.positions,
            l_.frequencies, l_.rotary_factor},
           num_threads_);
  }

  void turn_heads() const {
    if (l_.q_norm != nullptr) {
      norm_heads(queries_, query_floats_, l_.q_norm);
      norm_heads(keys_, key_floats_, l_.k_norm);
    }
    if (l_.clips) {
      clip_heads(queries_, query_floats_);
      clip_heads(keys_, key_floats_);
      clip_heads(values_, key_floats_);
    }
    rotate(queries_, l_.num_heads);
    rotate(keys_, l_.layout.num_kv_heads);
  }

  void fill_caches() const {
    int64_t at = 0;
    for (int64_t i = 0; i < step_.num_sequences; ++i) {
      const NewTokens& tokens = step_.sequences[i];
      const NewPositions positions{keys_ + at * key_floats_, values_ + at * key_floats_, tokens.position,
                                   tokens.num_tokens};
      fill_pages(l_.layout, positions, tokens.pages + tokens.position / kBlockPositions, num_threads_);
      at += tokens.num_tokens;
    }
  }

  // Writes to `read_` what the heads give.
  Status attend(const AttentionKernels& kernels) {
    int64_t at = 0;
    for (int64_t i = 0; i < step_.num_sequences; ++i) {
      const NewTokens& tokens = step_.sequences[i];
      sequences_[i] = {queries_ + at * query_floats_, tokens.num_tokens, tokens.pages,
                       tokens.position + tokens.num_tokens, reinterpret_cast<uint8_t*>(read_ + at * query_floats_)};
      at += tokens.num_tokens;
    }
    return attention(
        kernels,
        {sequences_, step_.num_sequences, l_.layout, l_.num_heads, l_.window, l_.scale, l_.sinks, DType::kBFloat16},
        num_threads_);
  }

  void add_sums() const {
    split(step_.num_tokens, l_.hidden_size, [&](int64_t first, int64_t count) {
      for (int64_t i = first * l_.hidden_size; i < (first + count) * l_.hidden_size; ++i) {
        step_.residual[i] += sums_[i];
      }
    });
  }

  const SelfAttention& l_;
  const DecoderStep& step_;
  const int num_threads_;
  const int64_t query_floats_, key_floats_;  // of a token
  uint16_t* read_ = nullptr;                 // what the next matrix reads, in bfloat16
  float* sums_ = nullptr;                    // what a matrix gives
  float *queries_ = nullptr, *keys_ = nullptr, *values_ = nullptr;
  AttentionSequence* sequences_ = nullptr;
};

}  // namespace

Status add_self_attention(const MatrixKernels& kernels, const AttentionKernels& attention_kernels,
                          const SelfAttention& layer, const DecoderStep& step, int num_threads) {
  if (step.num_tokens == 0) return Status::kOk;
  return Call(layer, step, num_threads).run(kernels, attention_kernels);
}

}  // namespace mxfp4moe
