# The C library as Cython modules see it: from mxfp4moe cimport capi. mxfp4moe.h describes all of it.
from libc.stdint cimport int32_t, int64_t, uint64_t


cdef extern from "mxfp4moe.h" nogil:
    ctypedef int32_t mxfp4moe_status

    enum:
        MXFP4MOE_OK
        MXFP4MOE_INVALID_ARGUMENT
        MXFP4MOE_FILE_NOT_FOUND
        MXFP4MOE_INVALID_FILE
        MXFP4MOE_IO_ERROR
        MXFP4MOE_OUT_OF_MEMORY
        MXFP4MOE_UNSUPPORTED
        MXFP4MOE_INTERNAL_ERROR

    const char* mxfp4moe_last_error()
    const char* mxfp4moe_version()
    int32_t mxfp4moe_abi_version()
    int32_t mxfp4moe_layout_version()

    enum:
        MXFP4MOE_ISA_BEST
        MXFP4MOE_ISA_PORTABLE
        MXFP4MOE_ISA_AVX2
        MXFP4MOE_ISA_AVX512
        MXFP4MOE_ISA_AMX

    int32_t mxfp4moe_isa_supported(int32_t isa)
    int32_t mxfp4moe_best_isa()
    int32_t mxfp4moe_available_threads()
    int32_t mxfp4moe_num_pool_threads()
    void mxfp4moe_release_pool_threads()
    ctypedef void (*mxfp4moe_task)(void* task_context, int32_t index) noexcept
    ctypedef void (*mxfp4moe_parallel_for)(
        void* context, int32_t count, mxfp4moe_task task, void* task_context) noexcept
    ctypedef struct mxfp4moe_options:
        size_t struct_size
        int32_t num_threads
        int32_t isa
        mxfp4moe_parallel_for parallel_for
        void* parallel_context

    enum:
        MXFP4MOE_DTYPE_FLOAT32
        MXFP4MOE_DTYPE_FLOAT16
        MXFP4MOE_DTYPE_BFLOAT16
        MXFP4MOE_DTYPE_FLOAT64
        MXFP4MOE_DTYPE_UINT8
        MXFP4MOE_DTYPE_INT8
        MXFP4MOE_DTYPE_FLOAT8_E4M3
        MXFP4MOE_DTYPE_FLOAT8_E5M2
        MXFP4MOE_DTYPE_FLOAT8_E8M0
        MXFP4MOE_DTYPE_INT32

    enum:
        MXFP4MOE_FORMAT_MXFP4
        MXFP4MOE_FORMAT_MXFP8
        MXFP4MOE_FORMAT_NVFP4
        MXFP4MOE_FORMAT_FP8_BLOCK
        MXFP4MOE_FORMAT_BF16
        MXFP4MOE_FORMAT_INT4
        MXFP4MOE_FORMAT_INT8
        MXFP4MOE_FORMAT_FLOAT32

    enum:
        MXFP4MOE_ACTIVATION_FORMAT_BFLOAT16
        MXFP4MOE_ACTIVATION_FORMAT_INT8

    enum:
        MXFP4MOE_CONCATENATED
        MXFP4MOE_INTERLEAVED

    ctypedef struct mxfp4moe_array:
        const void* data
        uint64_t size
        int32_t dtype

    ctypedef struct mxfp4moe_experts:
        pass

    ctypedef struct mxfp4moe_linear:
        pass

    ctypedef struct mxfp4moe_layer:
        pass

    ctypedef struct mxfp4moe_experts_arrays:
        size_t struct_size
        int32_t format
        int32_t gate_up_layout
        int32_t ungated
        int64_t num_experts, hidden_size, intermediate_size
        int64_t block_rows, block_columns
        int64_t w13_group_size, w2_group_size
        mxfp4moe_array w13, w13_scales, w13_zero_points, w13_tensor_scale, w13_bias
        mxfp4moe_array w2, w2_scales, w2_zero_points, w2_tensor_scale, w2_bias
        mxfp4moe_array w13_offsets, w2_offsets, w13_columns
        int32_t w2_format

    ctypedef struct mxfp4moe_linear_arrays:
        size_t struct_size
        int32_t format
        int64_t num_rows, num_columns
        int64_t block_rows, block_columns, group_size
        mxfp4moe_array weight, scales, zero_points, tensor_scale, bias
        mxfp4moe_array offsets

    mxfp4moe_status mxfp4moe_pack_experts(
        const mxfp4moe_experts_arrays* arrays, const mxfp4moe_options* options, mxfp4moe_experts** experts)
    mxfp4moe_status mxfp4moe_open_experts(
        const char* path, int32_t verify, const mxfp4moe_options* options, mxfp4moe_experts** experts)
    void mxfp4moe_close_experts(mxfp4moe_experts* experts)
    mxfp4moe_status mxfp4moe_pack_linear(
        const mxfp4moe_linear_arrays* arrays, const mxfp4moe_options* options, mxfp4moe_linear** linear)
    mxfp4moe_status mxfp4moe_open_linear(
        const char* path, int32_t verify, const mxfp4moe_options* options, mxfp4moe_linear** linear)
    void mxfp4moe_close_linear(mxfp4moe_linear* linear)
    mxfp4moe_status mxfp4moe_open_layer(
        const char* path, int32_t verify, const mxfp4moe_options* options, mxfp4moe_layer** layer)
    mxfp4moe_status mxfp4moe_open_layer_slice(
        const char* path, int32_t verify, const int64_t* expert_ids, int64_t num_ids,
        const mxfp4moe_options* options, mxfp4moe_layer** layer)
    void mxfp4moe_close_layer(mxfp4moe_layer* layer)
    ctypedef struct mxfp4moe_experts_info:
        size_t struct_size
        int32_t format
        int32_t ungated
        int64_t num_experts, hidden_size, intermediate_size
        int64_t num_bytes
        int32_t w2_format
        int32_t has_columns

    mxfp4moe_status mxfp4moe_get_experts_info(const mxfp4moe_experts* experts, mxfp4moe_experts_info* info)
    ctypedef struct mxfp4moe_linear_info:
        size_t struct_size
        int32_t format
        int32_t has_bias
        int64_t num_rows, num_columns
        int64_t num_bytes

    mxfp4moe_status mxfp4moe_get_linear_info(const mxfp4moe_linear* linear, mxfp4moe_linear_info* info)
    ctypedef struct mxfp4moe_layer_info:
        size_t struct_size
        int32_t format
        int32_t needs_input_ids
        int32_t needs_router_hidden_states
        int64_t num_experts, hidden_size, intermediate_size, top_k
        int64_t num_bytes
        int64_t num_held_experts
        int32_t w2_format
        int32_t activation_format

    mxfp4moe_status mxfp4moe_get_layer_info(const mxfp4moe_layer* layer, mxfp4moe_layer_info* info)

    enum:
        MXFP4MOE_ACTIVATION_SILU
        MXFP4MOE_ACTIVATION_SWIGLUOAI
        MXFP4MOE_ACTIVATION_GELU
        MXFP4MOE_ACTIVATION_GELU_TANH
        MXFP4MOE_ACTIVATION_SILU_CLAMP
        MXFP4MOE_ACTIVATION_SITU
        MXFP4MOE_ACTIVATION_RELU2

    const char* mxfp4moe_activation_name(int32_t activation)

    ctypedef struct mxfp4moe_fused_experts_args:
        size_t struct_size
        const void* hidden_states
        void* out
        const float* topk_weights
        const int32_t* topk_ids
        int64_t num_tokens, top_k
        int64_t hidden_states_stride, out_stride
        int32_t hidden_states_dtype, out_dtype
        int32_t activation
        int32_t apply_router_weight_on_input
        double alpha, limit
        const int64_t* expert_map
        int64_t num_global_experts
        int32_t activation_format
        int32_t uncombined

    mxfp4moe_status mxfp4moe_fused_experts(
        const mxfp4moe_experts* experts, const mxfp4moe_fused_experts_args* args, const mxfp4moe_options* options)
    ctypedef struct mxfp4moe_linear_args:
        size_t struct_size
        const void* hidden_states
        void* out
        int64_t num_tokens
        int64_t hidden_states_stride, out_stride
        int32_t hidden_states_dtype, out_dtype
        int32_t activation_format

    mxfp4moe_status mxfp4moe_apply_linear(
        const mxfp4moe_linear* linear, const mxfp4moe_linear_args* args, const mxfp4moe_options* options)
    ctypedef struct mxfp4moe_layer_args:
        size_t struct_size
        const void* hidden_states
        void* out
        int64_t num_tokens
        int64_t hidden_states_stride, out_stride
        int32_t hidden_states_dtype, out_dtype
        const int64_t* input_ids
        const void* router_hidden_states
        int64_t router_hidden_states_stride
        int32_t router_hidden_states_dtype
        int32_t propagate_nonfinite

    mxfp4moe_status mxfp4moe_apply_layer(
        const mxfp4moe_layer* layer, const mxfp4moe_layer_args* args, const mxfp4moe_options* options)
    mxfp4moe_status mxfp4moe_route_layer(
        const mxfp4moe_layer* layer, const mxfp4moe_layer_args* args, float* topk_weights, int32_t* topk_ids,
        const mxfp4moe_options* options)

    enum:
        MXFP4MOE_SCORING_SOFTMAX
        MXFP4MOE_SCORING_SIGMOID
        MXFP4MOE_SCORING_SQRT_SOFTPLUS
        MXFP4MOE_SCORING_TOPK_SOFTMAX
        MXFP4MOE_SCORING_SPARSEMIXER

    enum:
        MXFP4MOE_GROUP_TOP2_SUM
        MXFP4MOE_GROUP_MAX

    ctypedef struct mxfp4moe_routing:
        size_t struct_size
        int32_t scoring
        int32_t select_by_logit
        int32_t ids_given
        int32_t group_score
        int32_t zero_masked_groups
        int32_t renormalize
        int64_t num_shared_experts, num_groups, topk_group
        double logit_softcap
        double jitter_eps
        double norm_order, norm_epsilon, norm_floor, routed_scaling_factor
        const float* correction_bias
        const float* expert_scale

    mxfp4moe_status mxfp4moe_init_routing(mxfp4moe_routing* routing)
    ctypedef struct mxfp4moe_route_args:
        size_t struct_size
        const float* router_logits
        float* topk_weights
        int32_t* topk_ids
        int64_t num_tokens, num_logits, top_k

    mxfp4moe_status mxfp4moe_route(
        const mxfp4moe_routing* routing, const mxfp4moe_route_args* args, const mxfp4moe_options* options)

    enum:
        MXFP4MOE_SCALE_FLOOR
        MXFP4MOE_SCALE_CEIL
        MXFP4MOE_SCALE_RCEIL
        MXFP4MOE_SCALE_EVEN

    ctypedef struct mxfp4moe_quantize_shape:
        size_t struct_size
        int32_t format
        int32_t values_dtype
        int32_t e5m2
        int32_t scale_rule
        int32_t nonfinite_is_nan
        int64_t num_matrices, num_rows, num_columns
        int64_t block_rows, block_columns, group_size

    ctypedef struct mxfp4moe_buffer:
        void* data
        uint64_t size

    ctypedef struct mxfp4moe_quantized:
        size_t struct_size
        mxfp4moe_buffer codes, scales, zero_points, tensor_scales

    mxfp4moe_status mxfp4moe_quantize(
        const mxfp4moe_quantize_shape* shape, mxfp4moe_array values, const mxfp4moe_quantized* quantized,
        const mxfp4moe_options* options)
    ctypedef struct mxfp4moe_quantized_arrays:
        size_t struct_size
        mxfp4moe_array codes, scales, zero_points, tensor_scales

    mxfp4moe_status mxfp4moe_dequantize(
        const mxfp4moe_quantize_shape* shape, const mxfp4moe_quantized_arrays* arrays,
        mxfp4moe_buffer values, const mxfp4moe_options* options)
