/* mxfp4moe: fused mixture-of-experts from 4-bit and 8-bit weights on CPUs, as a C library.
 *
 * Results have the same bits as those of the Python package. Every function may be called from several threads at
 * once, also on one handle: handles never change. No function throws, prints, or looks at environment variables.
 *
 * Structures begin with their size, struct_size = sizeof(structure), by which a later library knows what a program
 * knew. Fields that are 0 have their default. Text is UTF-8. What a function returns through a pointer is left alone if
 * it fails. */
#ifndef MXFP4MOE_H
#define MXFP4MOE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MXFP4MOE_API __attribute__((visibility("default")))
#else
#define MXFP4MOE_API
#endif

/* It grows when a program that was compiled before would no longer work. */
#define MXFP4MOE_ABI_VERSION 1

/* ---- errors ---- */

typedef int32_t mxfp4moe_status;
enum {
  MXFP4MOE_OK = 0,
  MXFP4MOE_INVALID_ARGUMENT = 1, /* the message names the argument, what was expected and what came */
  MXFP4MOE_FILE_NOT_FOUND = 2,
  MXFP4MOE_INVALID_FILE = 3, /* no packed file of this kind and version, or a damaged one */
  MXFP4MOE_IO_ERROR = 4,
  MXFP4MOE_OUT_OF_MEMORY = 5,
  MXFP4MOE_UNSUPPORTED = 6, /* this machine or build cannot do it */
  MXFP4MOE_INTERNAL_ERROR = 7
};

/* The message of the last call of this thread that failed; "" if none has. It holds until the next one fails. */
MXFP4MOE_API const char* mxfp4moe_last_error(void);

/* ---- the library ---- */

MXFP4MOE_API const char* mxfp4moe_version(void);
MXFP4MOE_API int32_t mxfp4moe_abi_version(void); /* MXFP4MOE_ABI_VERSION of the library that is loaded */
MXFP4MOE_API int32_t mxfp4moe_layout_version(void);

/* Instruction sets; MXFP4MOE_ISA_BEST is the preferred one of those that this machine has. */
enum {
  MXFP4MOE_ISA_BEST = 0,
  MXFP4MOE_ISA_PORTABLE = 1,
  MXFP4MOE_ISA_AVX2 = 2,
  MXFP4MOE_ISA_AVX512 = 3,
  MXFP4MOE_ISA_AMX = 4
};
MXFP4MOE_API int32_t mxfp4moe_isa_supported(int32_t isa); /* 1 or 0 */
MXFP4MOE_API int32_t mxfp4moe_best_isa(void);

/* How many processors this thread may use. */
MXFP4MOE_API int32_t mxfp4moe_available_threads(void);
/* The threads that the library has made and keeps for later calls; and their end, once they wait for work. */
MXFP4MOE_API int32_t mxfp4moe_num_pool_threads(void);
MXFP4MOE_API void mxfp4moe_release_pool_threads(void);

/* A pool of the host: runs task(task_context, index) once for each index in [0, count) and returns when all have
 * returned. For speed the tasks run at the same time, on different threads. Where some wait for others to end, the call
 * is computed by those that came within some 50 microseconds, and the others return at once. No bit of a result
 * depends on that. With it, the library makes no thread. It must not throw. */
typedef void (*mxfp4moe_task)(void* task_context, int32_t index);
typedef void (*mxfp4moe_parallel_for)(void* context, int32_t count, mxfp4moe_task task, void* task_context);

/* How a call is computed. Wherever a pointer to these is taken, NULL means the defaults. */
typedef struct mxfp4moe_options {
  size_t struct_size;
  int32_t num_threads; /* at most so many, 1 to 1024; 0: as many as there are processors */
  int32_t isa;
  mxfp4moe_parallel_for parallel_for; /* NULL: the library's own threads */
  void* parallel_context;
} mxfp4moe_options;

/* ---- arrays and weights ---- */

enum {
  MXFP4MOE_DTYPE_FLOAT32 = 0,
  MXFP4MOE_DTYPE_FLOAT16 = 1,
  MXFP4MOE_DTYPE_BFLOAT16 = 2,
  MXFP4MOE_DTYPE_FLOAT64 = 3,
  MXFP4MOE_DTYPE_UINT8 = 4,
  MXFP4MOE_DTYPE_INT8 = 5,
  MXFP4MOE_DTYPE_FLOAT8_E4M3 = 6,
  MXFP4MOE_DTYPE_FLOAT8_E5M2 = 7,
  MXFP4MOE_DTYPE_FLOAT8_E8M0 = 8,
  MXFP4MOE_DTYPE_INT32 = 9
};

/* Weight formats; their arrays are those of pack_experts and pack_linear in Python. */
enum {
  MXFP4MOE_FORMAT_MXFP4 = 1,
  MXFP4MOE_FORMAT_MXFP8 = 2,
  MXFP4MOE_FORMAT_NVFP4 = 3,
  MXFP4MOE_FORMAT_FP8_BLOCK = 4,
  MXFP4MOE_FORMAT_BF16 = 5,
  MXFP4MOE_FORMAT_INT4 = 6,
  MXFP4MOE_FORMAT_INT8 = 7,
  MXFP4MOE_FORMAT_FLOAT32 = 8 /* of linears alone: floats used exactly */
};

/* What hidden states and intermediates are rounded to. INT8 is for weights in MXFP4, NVFP4, INT4 and INT8. */
enum { MXFP4MOE_ACTIVATION_FORMAT_BFLOAT16 = 0, MXFP4MOE_ACTIVATION_FORMAT_INT8 = 1 };

enum { MXFP4MOE_CONCATENATED = 0, MXFP4MOE_INTERLEAVED = 1 }; /* the order of gate and up rows */

#define MXFP4MOE_WHOLE_AXIS (-1) /* a block that is as large as the matrix */

/* A C-contiguous array, only read; its size in bytes must be that of the shape. {NULL, 0, 0} is none. */
typedef struct mxfp4moe_array {
  const void* data;
  uint64_t size;
  int32_t dtype;
} mxfp4moe_array;

typedef struct mxfp4moe_experts mxfp4moe_experts; /* the packed experts of a layer */
typedef struct mxfp4moe_linear mxfp4moe_linear;   /* a packed matrix, and its bias */
typedef struct mxfp4moe_layer mxfp4moe_layer;     /* a whole layer: router and experts */

/* E experts of hidden size K and intermediate size I. w13 has the rows of gate and up, 2 I of them, or I rows of up. */
typedef struct mxfp4moe_experts_arrays {
  size_t struct_size;
  int32_t format;
  int32_t gate_up_layout;
  int32_t ungated; /* 1: experts without a gate */
  int64_t num_experts, hidden_size, intermediate_size;
  int64_t block_rows, block_columns;     /* of FP8_BLOCK: rows and columns that share a scale; 0: 128 */
  int64_t w13_group_size, w2_group_size; /* of INT4 and INT8: weights of a row that share a scale, 16 (without zero
                                            points) or a multiple of 32; 0: all */
  mxfp4moe_array w13, w13_scales, w13_zero_points, w13_tensor_scale, w13_bias;
  mxfp4moe_array w2, w2_scales, w2_zero_points, w2_tensor_scale, w2_bias;
  mxfp4moe_array w13_offsets, w2_offsets; /* of INT4 and INT8, as the scales; not beside zero points */
  mxfp4moe_array w13_columns;             /* int32 [num_experts][hidden_size]: a permutation for each expert */
  int32_t w2_format;                      /* 0: that of w13, which is `format` */
} mxfp4moe_experts_arrays;

/* A matrix of num_rows x num_columns. */
typedef struct mxfp4moe_linear_arrays {
  size_t struct_size;
  int32_t format;
  int64_t num_rows, num_columns;
  int64_t block_rows, block_columns, group_size; /* as above */
  mxfp4moe_array weight, scales, zero_points, tensor_scale, bias;
  mxfp4moe_array offsets; /* as above */
} mxfp4moe_linear_arrays;

/* Packed weights are a copy of the arrays. Those of a file are mapped: it must not be shortened while it is open.
 * With `verify`, 1 or 0, all checksums of a file are compared, which reads it. A close function takes NULL too. */
MXFP4MOE_API mxfp4moe_status mxfp4moe_pack_experts(const mxfp4moe_experts_arrays* arrays,
                                                   const mxfp4moe_options* options, mxfp4moe_experts** experts);
MXFP4MOE_API mxfp4moe_status mxfp4moe_open_experts(const char* path, int32_t verify, const mxfp4moe_options* options,
                                                   mxfp4moe_experts** experts);
MXFP4MOE_API void mxfp4moe_close_experts(mxfp4moe_experts* experts);

MXFP4MOE_API mxfp4moe_status mxfp4moe_pack_linear(const mxfp4moe_linear_arrays* arrays, const mxfp4moe_options* options,
                                                  mxfp4moe_linear** linear);
MXFP4MOE_API mxfp4moe_status mxfp4moe_open_linear(const char* path, int32_t verify, const mxfp4moe_options* options,
                                                  mxfp4moe_linear** linear);
MXFP4MOE_API void mxfp4moe_close_linear(mxfp4moe_linear* linear);

MXFP4MOE_API mxfp4moe_status mxfp4moe_open_layer(const char* path, int32_t verify, const mxfp4moe_options* options,
                                                 mxfp4moe_layer** layer);
/* A slice: the layer with these experts alone, each given once. The others are not read, but by `verify`. A slice, from
 * here or from a file of one, gives the sum of its experts, without what is added once, such as the shared expert. It
 * routes as the whole layer does. */
MXFP4MOE_API mxfp4moe_status mxfp4moe_open_layer_slice(const char* path, int32_t verify, const int64_t* expert_ids,
                                                       int64_t num_ids, const mxfp4moe_options* options,
                                                       mxfp4moe_layer** layer);
MXFP4MOE_API void mxfp4moe_close_layer(mxfp4moe_layer* layer);

/* What a handle is; the caller sets struct_size, the library the rest of what it covers. */
typedef struct mxfp4moe_experts_info {
  size_t struct_size;
  int32_t format;
  int32_t ungated;
  int64_t num_experts, hidden_size, intermediate_size;
  int64_t num_bytes; /* of the packed weights */
  int32_t w2_format; /* `format` is that of w13 */
  int32_t has_columns;
} mxfp4moe_experts_info;
MXFP4MOE_API mxfp4moe_status mxfp4moe_get_experts_info(const mxfp4moe_experts* experts, mxfp4moe_experts_info* info);

typedef struct mxfp4moe_linear_info {
  size_t struct_size;
  int32_t format;
  int32_t has_bias;
  int64_t num_rows, num_columns;
  int64_t num_bytes;
} mxfp4moe_linear_info;
MXFP4MOE_API mxfp4moe_status mxfp4moe_get_linear_info(const mxfp4moe_linear* linear, mxfp4moe_linear_info* info);

typedef struct mxfp4moe_layer_info {
  size_t struct_size;
  int32_t format; /* of the experts */
  int32_t needs_input_ids;
  int32_t needs_router_hidden_states;
  int64_t num_experts, hidden_size, intermediate_size, top_k;
  int64_t num_bytes;        /* of the experts, shared ones included */
  int64_t num_held_experts; /* fewer than num_experts in a slice */
  int32_t w2_format;        /* as of experts */
  int32_t activation_format;
} mxfp4moe_layer_info;
MXFP4MOE_API mxfp4moe_status mxfp4moe_get_layer_info(const mxfp4moe_layer* layer, mxfp4moe_layer_info* info);

/* ---- computing ----
 * Rows of tokens are float32, bfloat16 or float16 and aligned to that. Strides are bytes from row to row; 0: rows
 * follow each other. */

enum {
  MXFP4MOE_ACTIVATION_SILU = 0,
  MXFP4MOE_ACTIVATION_SWIGLUOAI = 1,
  MXFP4MOE_ACTIVATION_GELU = 2,
  MXFP4MOE_ACTIVATION_GELU_TANH = 3,
  MXFP4MOE_ACTIVATION_SILU_CLAMP = 4,
  MXFP4MOE_ACTIVATION_SITU = 5,
  MXFP4MOE_ACTIVATION_RELU2 = 6 /* of experts without a gate, which take no other */
};
/* The name of an activation in Python and in files; NULL for any other number. */
MXFP4MOE_API const char* mxfp4moe_activation_name(int32_t activation);

/* fused_experts of Python. `out` may be `hidden_states` itself, with the same dtype and stride; otherwise it overlaps
 * no input. With `uncombined`, 1, it is [num_tokens][top_k][hidden_size] of float32, the term of each slot. */
typedef struct mxfp4moe_fused_experts_args {
  size_t struct_size;
  const void* hidden_states; /* [num_tokens][hidden_size] */
  void* out;                 /* likewise */
  const float* topk_weights; /* [num_tokens][top_k] */
  const int32_t* topk_ids;   /* likewise; -1 is a dropped slot */
  int64_t num_tokens, top_k;
  int64_t hidden_states_stride, out_stride;
  int32_t hidden_states_dtype, out_dtype;
  int32_t activation;
  int32_t apply_router_weight_on_input;
  double alpha, limit;       /* 0: the default of the activation */
  const int64_t* expert_map; /* [num_global_experts]: what topk_ids index, ids of `experts` or -1; NULL: none */
  int64_t num_global_experts;
  int32_t activation_format;
  int32_t uncombined;
} mxfp4moe_fused_experts_args;
MXFP4MOE_API mxfp4moe_status mxfp4moe_fused_experts(const mxfp4moe_experts* experts,
                                                    const mxfp4moe_fused_experts_args* args,
                                                    const mxfp4moe_options* options);

/* out = hidden_states @ weight.T + bias; `out` overlaps no input. */
typedef struct mxfp4moe_linear_args {
  size_t struct_size;
  const void* hidden_states; /* [num_tokens][num_columns] */
  void* out;                 /* [num_tokens][num_rows] */
  int64_t num_tokens;
  int64_t hidden_states_stride, out_stride;
  int32_t hidden_states_dtype, out_dtype;
  int32_t activation_format;
} mxfp4moe_linear_args;
MXFP4MOE_API mxfp4moe_status mxfp4moe_apply_linear(const mxfp4moe_linear* linear, const mxfp4moe_linear_args* args,
                                                   const mxfp4moe_options* options);

/* A layer, as MoELayer computes it, with the activation format that it was saved with. */
typedef struct mxfp4moe_layer_args {
  size_t struct_size;
  const void* hidden_states; /* [num_tokens][hidden_size] */
  void* out;                 /* likewise, as for fused experts; not of mxfp4moe_route_layer */
  int64_t num_tokens;
  int64_t hidden_states_stride, out_stride;
  int32_t hidden_states_dtype, out_dtype;
  const int64_t* input_ids;         /* [num_tokens]: of layers that route by token ids */
  const void* router_hidden_states; /* of layers whose router has an input of its own */
  int64_t router_hidden_states_stride;
  int32_t router_hidden_states_dtype;
  int32_t propagate_nonfinite; /* 1: a token that is not finite has NaN as result; 0: an error */
} mxfp4moe_layer_args;
MXFP4MOE_API mxfp4moe_status mxfp4moe_apply_layer(const mxfp4moe_layer* layer, const mxfp4moe_layer_args* args,
                                                  const mxfp4moe_options* options);
/* The experts of each token, [num_tokens][top_k], by the router of a layer. */
MXFP4MOE_API mxfp4moe_status mxfp4moe_route_layer(const mxfp4moe_layer* layer, const mxfp4moe_layer_args* args,
                                                  float* topk_weights, int32_t* topk_ids,
                                                  const mxfp4moe_options* options);

/* ---- routing ---- */

enum {
  MXFP4MOE_SCORING_SOFTMAX = 0,
  MXFP4MOE_SCORING_SIGMOID = 1,
  MXFP4MOE_SCORING_SQRT_SOFTPLUS = 2,
  MXFP4MOE_SCORING_TOPK_SOFTMAX = 3, /* over the chosen logits; it takes no other field */
  MXFP4MOE_SCORING_SPARSEMIXER = 4   /* it takes jitter_eps and no other field */
};
enum { MXFP4MOE_GROUP_TOP2_SUM = 0, MXFP4MOE_GROUP_MAX = 1 };

/* select_experts of Python, whose names these are; mxfp4moe_init_routing sets its defaults. */
typedef struct mxfp4moe_routing {
  size_t struct_size;
  int32_t scoring;
  int32_t select_by_logit;
  int32_t ids_given; /* 1: topk_ids are read, not chosen; with SIGMOID and SQRT_SOFTPLUS */
  int32_t group_score;
  int32_t zero_masked_groups;
  int32_t renormalize;
  int64_t num_shared_experts, num_groups, topk_group;
  double logit_softcap; /* 0: none */
  double jitter_eps;
  double norm_order, norm_epsilon, norm_floor, routed_scaling_factor;
  const float* correction_bias; /* [num_logits - num_shared_experts], or NULL */
  const float* expert_scale;    /* [num_logits], or NULL */
} mxfp4moe_routing;
MXFP4MOE_API mxfp4moe_status mxfp4moe_init_routing(mxfp4moe_routing* routing); /* struct_size is set before */

/* Each token has num_logits logits, and top_k + num_shared_experts weights and ids. */
typedef struct mxfp4moe_route_args {
  size_t struct_size;
  const float* router_logits; /* [num_tokens][num_logits] */
  float* topk_weights;        /* [num_tokens][top_k + num_shared_experts] */
  int32_t* topk_ids;          /* likewise */
  int64_t num_tokens, num_logits, top_k;
} mxfp4moe_route_args;
MXFP4MOE_API mxfp4moe_status mxfp4moe_route(const mxfp4moe_routing* routing, const mxfp4moe_route_args* args,
                                            const mxfp4moe_options* options);

/* ---- quantizing ---- */

enum {
  MXFP4MOE_SCALE_FLOOR = 0,
  MXFP4MOE_SCALE_CEIL = 1,
  MXFP4MOE_SCALE_RCEIL = 2,
  MXFP4MOE_SCALE_EVEN = 3
}; /* of the MX formats */

/* num_matrices matrices of num_rows x num_columns values. */
typedef struct mxfp4moe_quantize_shape {
  size_t struct_size;
  int32_t format;       /* neither BF16 nor FLOAT32 */
  int32_t values_dtype; /* float32, float16, bfloat16 or float64 */
  int32_t e5m2;         /* of MXFP8: 1 for elements of E5M2 */
  int32_t scale_rule;
  int32_t nonfinite_is_nan; /* 1: a value that is not finite makes the scale of its block NaN; 0: an error */
  int64_t num_matrices, num_rows, num_columns;
  int64_t block_rows, block_columns, group_size; /* as of linears */
} mxfp4moe_quantize_shape;

/* Memory that is written, with its size in bytes. */
typedef struct mxfp4moe_buffer {
  void* data;
  uint64_t size;
} mxfp4moe_buffer;

/* `scales` are bytes for the MX formats and NVFP4, and float32 otherwise; `tensor_scales`, float32 of each matrix, are
 * those of NVFP4; with `zero_points`, of INT4 and INT8, they are asymmetric. Buffers that are not used have no data. */
typedef struct mxfp4moe_quantized {
  size_t struct_size;
  mxfp4moe_buffer codes, scales, zero_points, tensor_scales;
} mxfp4moe_quantized;
MXFP4MOE_API mxfp4moe_status mxfp4moe_quantize(const mxfp4moe_quantize_shape* shape, mxfp4moe_array values,
                                               const mxfp4moe_quantized* quantized, const mxfp4moe_options* options);

typedef struct mxfp4moe_quantized_arrays {
  size_t struct_size;
  mxfp4moe_array codes, scales, zero_points, tensor_scales;
} mxfp4moe_quantized_arrays;
MXFP4MOE_API mxfp4moe_status mxfp4moe_dequantize(const mxfp4moe_quantize_shape* shape,
                                                 const mxfp4moe_quantized_arrays* arrays, mxfp4moe_buffer values,
                                                 const mxfp4moe_options* options);

#ifdef __cplusplus
}
#endif
#endif
