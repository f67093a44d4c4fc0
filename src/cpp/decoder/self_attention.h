// The attention of a decoder layer as a whole, from the residual stream back to it: the operations that attention/ and
// linear/ define one by one, without a way back to the caller between them. For a token at a time such ways back,
// through caches that the weights have emptied, would take longer than most of the operations.
#pragma once

#include "attention/kv_page.h"
#include "linear/linear.h"
#include "platform/exported.h"

namespace mxfp4moe {

// A packed matrix with its bias, if it has one.
struct Linear {
  MatrixShape shape;
  PackedMatrix weight;
};

// The weights and sizes of a layer.
struct SelfAttention {
  int64_t hidden_size;
  int64_t num_heads;
  KVLayout layout;
  double norm_epsilon;
  const float* input_norm;    // [hidden_size]
  const Linear* projections;  // to queries, keys and values, one after another in their rows
  int64_t num_projections;
  Linear output;
  const float* q_norm;  // of each head, or of all heads at once; both are null without such norms
  const float* k_norm;
  bool norms_whole;  // a norm of queries or keys has all heads
  bool clips;        // queries, keys and values are clipped to [-clip, clip]
  float clip;
  const double* frequencies;  // [num_pairs], as Rotary has them
  int64_t num_pairs;
  double rotary_factor;
  int64_t window;
  float scale;
  const float* sinks;  // [num_heads], or null
};

// New tokens of a sequence, whose pages have room for them.
struct NewTokens {
  int64_t num_tokens;
  int64_t position;  // of the first one
  uint8_t* const* pages;
};

// Tokens of one or several sequences that are computed together.
struct DecoderStep {
  float* residual;  // [num_tokens][hidden_size], sequence after sequence
  const int64_t* positions;
  int64_t num_tokens;
  const NewTokens* sequences;
  int64_t num_sequences;
};

// The kernels of matrices: those of `preferred`, for activations of eight bits perhaps, if it has any for the format of
// a matrix, and else those of `table`.
struct MatrixKernels {
  KernelTable table;
  KernelTable preferred;
};

// Writes keys and values of the tokens into their pages, and adds to the residual stream what their attention gives.
// What the matrices read is rounded to bfloat16 once, before it may be rounded to eight bits. Never throws.
Status add_self_attention(const MatrixKernels& kernels, const AttentionKernels& attention_kernels,
                          const SelfAttention& layer, const DecoderStep& step, int num_threads)
    MXFP4MOE_EXPORTED(add_self_attention);

}  // namespace mxfp4moe
