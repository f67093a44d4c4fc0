// Attention of the last positions of sequences over their key/value caches, shared among threads.
#pragma once

#include "kernels/attention_kernels.h"
#include "platform/exported.h"

namespace mxfp4moe {

struct AttentionSequence {
  const float* queries;  // [num_queries][num_heads][head_dim]: those of the last positions
  int64_t num_queries;
  const uint8_t* const* pages;
  int64_t length;  // positions in the cache
  uint8_t* out;    // [num_queries][num_heads][head_dim]
};

struct AttentionProblem {
  const AttentionSequence* sequences;
  int64_t num_sequences;
  KVLayout layout;
  int64_t num_heads;  // a multiple of the heads of keys and values
  int64_t window;     // how many positions a query sees, its own the last of them
  float scale;
  const float* sinks;  // [num_heads], or null
  DType out_dtype;
};

// Computes every sequence. No bit of a query's result depends on the other queries, the other sequences or the number
// of threads. Never throws.
Status attention(const AttentionKernels& kernels, const AttentionProblem& problem, int num_threads)
    MXFP4MOE_EXPORTED(attention);

}  // namespace mxfp4moe
