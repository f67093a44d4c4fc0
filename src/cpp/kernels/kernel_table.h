// What an instruction set supplies: one constant table of functions. Each function does thousands of operations per
// call, so that the indirect call costs nothing, and the schedule above the table is written only once.
//
// Each table is compiled from one source file, kernels_<name>.cpp, with compiler flags of its own. The headers of the
// stack below are not guarded and not self-contained: the source file includes them, from the bottom up, inside its
// anonymous namespace, so that every table has its own copy of each function, compiled with its own flags.
//
//                                       make_table.h                      the KernelTable
//            +-------------------------------+----------------------------+
//     dot_kernels.h, dot_peak.h       amx/tile_kernels.h           quantize.h, read_memory.h
//            |                               |                            |
//   dot_gemm.h, and of integers       amx/tile_gemm.h                     |    the GEMM of one panel
//   integer_sums.h, or avx512/                                            |
//   integer_pairs.h, integer_lanes.h                                      |
//            +-------------------------------+                            |
//         segments.h, weight_formats.h                                    |    K in segments, the decoders
//         rows.h, activation.h, math.h                                    |    rows in and out, activations
//            +-------------------------------+----------------------------+
//       <isa>/elements*.h                                                      how codes become vectors
//            +-------------------------------+
//       <isa>/dot*.h                  <isa>/tile_lanes.h, amx/tile*.h          dot products, or tiles
//            +-------------------------------+
//       <isa>/simd.h                                                           sixteen float32 lanes
//       generic/unroll.h                                                       loops at compile time
//
// dot_table.h and amx/tile_table.h include everything above the headers of an instruction set but the sums of integers,
// which a table of dot products includes after it. Kernels on activations of eight bits are compiled apart, from
// int8_<name>.cpp: int8_table.h includes math.h, activation.h, segments.h, rows.h, int8_blocks.h, int8_gemm.h,
// int8_peak.h and int8_kernels.h, in this order, on <isa>/simd.h and <isa>/int8_*.h. CONTRIBUTING.md says how a table
// is added.
#pragma once

#include "common/types.h"
#include "kernels/quantize_kernels.h"
#include "packing/panels.h"

namespace mxfp4moe {

// Gathers the hidden states of up to kTokenTile tokens of a group into the layout that this table's GEMM reads, which
// is called an operand.
struct PackTokensArgs {
  const uint8_t* hidden_states;
  int64_t row_stride;  // bytes
  DType dtype;
  const int32_t* tokens;  // for each token of the group, its row of hidden_states
  int64_t num_tokens;
  int64_t padded_tokens;  // the operand has room for so many tokens; those past num_tokens are filled with zeros
  int64_t hidden_size;
  uint8_t* operand;
  const int32_t* columns;  // for each column of the operand, that of hidden_states; null if they are the same
};

// GEMM 1, bias and activation, for panel pairs [pair_begin, pair_end) of one expert and one group of tokens. Panel 2 p
// holds 16 gate rows, panel 2 p + 1 the up rows of the same intermediate values; without a gate all are up rows, of 32
// intermediate values. The activation must be one for such experts. The result is the operand of GEMM 2.
struct GateUpArgs {
  PackedMatrix w13;  // of one expert
  int64_t pair_begin, pair_end;
  const uint8_t* operand;
  int64_t num_tokens;
  const float* input_weights;  // multiplies the sums of each token before the bias is added; may be null
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
  const int32_t* tokens;        // for each token of the group, its row of the accumulators
  const float* router_weights;  // for each token of the group; null counts as 1
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

// The kernels of one weight format.
struct WeightKernels {
  void (*gate_up)(const GateUpArgs&);
  void (*accumulate)(const AccumulateArgs&);
};

// The kernels of all weight formats on operands of one kind.
struct GemmKernels {
  // Returns how many tokens a group may hold if its operands have up to max_k columns.
  int64_t (*group_tokens)(int64_t max_k);
  // The tokens that an operand of `num_tokens` tokens has room for.
  int64_t (*padded_tokens)(int64_t num_tokens);
  int64_t (*operand_bytes)(int64_t num_tokens, int64_t k);
  // The scratch memory that one thread needs.
  int64_t (*scratch_bytes)(int64_t num_tokens, int64_t k);

  // Whether scales may belong to halves of K-blocks. Tiles cannot do that, because their sums run over whole K-blocks.
  bool scales_halves;

  // Whether gate_up must be given all pairs of a K-block of the intermediate together; see block_pairs().
  bool whole_blocks;

  void (*pack_tokens)(const PackTokensArgs&);
  WeightKernels weights[kNumWeightFormats];  // null for a format that operands of this kind are not multiplied with
};

struct KernelTable : GemmKernels {
  const char* name;   // the table's own name
  const char* isa;    // the public name of the instruction set that the table implements
  uint32_t required;  // bits of CpuFeature
  bool automatic;     // false for models of tiles, which only tests ask for

  void (*store_output)(const StoreArgs&);
  QuantizeKernels quantize;

  // The roofline is measured with these: one reads `bytes` bytes and returns a checksum, the other executes the inner
  // loop with its operands at rest and returns the FLOPs that it did.
  uint64_t (*read_memory)(const uint8_t* data, int64_t bytes);
  double (*peak_flops)(int64_t iterations);
};

// Kernels on activations of eight bits. All give the same bits, so that any may stand for those of a KernelTable.
struct Int8Kernels {
  const char* name;
  uint32_t required;  // bits of CpuFeature
  GemmKernels gemm;
  double (*peak_flops)(int64_t iterations);
};

}  // namespace mxfp4moe
