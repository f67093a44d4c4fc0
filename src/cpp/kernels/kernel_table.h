// What an instruction set supplies: one constant table of functions, each of which does thousands of
// operations per call, so that the indirection costs nothing and no schedule is written twice.
#pragma once

#include "common/types.h"
#include "kernels/quantize_kernels.h"
#include "packing/panels.h"

namespace mxfp4moe {

// Gathers the hidden states of up to sixteen tokens of a group into the layout that this table's GEMM reads
// ("operand").
struct PackTokensArgs {
  const uint8_t* hidden_states;
  int64_t row_stride;  // bytes
  DType dtype;
  const int32_t* tokens;  // row of hidden_states of each token of the group
  int64_t num_tokens;
  int64_t padded_tokens;  // tokens that the operand has room for; the rest is filled with zeros
  int64_t hidden_size;
  uint8_t* operand;
};

// GEMM 1, bias and activation: panel pairs [pair_begin, pair_end) of one expert for one token group. Panel 2p
// holds 16 gate rows, panel 2p + 1 the up rows of the same intermediate values. Writes the operand of GEMM 2.
struct GateUpArgs {
  PackedMatrix w13;  // of the expert
  int64_t pair_begin, pair_end;
  const uint8_t* operand;
  int64_t num_tokens;
  const float* input_weights;  // multiplies the sums of each token before the bias, or null
  Activation activation;
  int64_t intermediate_size;
  uint8_t* intermediate;
  uint8_t* scratch;
};

// A GEMM whose result is added up: accumulators[token][row] += router_weight * (sum + bias) for panels [panel_begin,
// panel_end). This is GEMM 2 with the combination of the experts; router logits are computed by it too.
struct AccumulateArgs {
  PackedMatrix matrix;  // of one expert
  int64_t panel_begin, panel_end;
  const uint8_t* operand;
  int64_t num_tokens;
  const int32_t* tokens;        // row of the accumulators of each token of the group
  const float* router_weights;  // of each token of the group, or null for 1
  float* accumulators;
  int64_t accumulator_stride;  // floats
  uint8_t* scratch;
};

// Rounds a rectangle of the accumulators to the type of the result.
struct StoreArgs {
  const float* accumulators;
  int64_t accumulator_stride;  // floats
  uint8_t* out;
  int64_t out_stride;  // bytes
  DType dtype;
  int64_t num_tokens;
  int64_t num_columns;
};

struct WeightKernels {
  void (*gate_up)(const GateUpArgs&);
  void (*accumulate)(const AccumulateArgs&);
};

struct KernelTable {
  const char* name;                              // of this table
  const char* isa;                               // the public instruction set that it implements
  uint32_t required;                             // CpuFeature bits
  bool automatic;                                // false: only on request (test models)
  int64_t (*group_tokens)(int64_t max_k);        // a token group holds at most so many tokens
  int64_t (*padded_tokens)(int64_t num_tokens);  // of a group, in its operands
  int64_t (*operand_bytes)(int64_t num_tokens, int64_t k);
  int64_t (*scratch_bytes)(int64_t num_tokens, int64_t k);  // of one thread
  void (*pack_tokens)(const PackTokensArgs&);
  WeightKernels weights[kNumWeightFormats];
  void (*store_output)(const StoreArgs&);
  QuantizeKernels quantize;
  // For the roofline: reads `bytes` bytes; executes the peak inner loop and returns the FLOPs that it did.
  uint64_t (*read_memory)(const uint8_t* data, int64_t bytes);
  double (*peak_flops)(int64_t iterations);
};

}  // namespace mxfp4moe
