# The C++ library as the binding sees it.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector


cdef extern from "common/types.h" namespace "mxfp4moe" nogil:
    # Numbers go by their names; only the values that the binding itself uses are declared.
    cdef enum class DType(int32_t):
        kFloat32

    cdef enum class WeightFormat(int32_t):
        kBf16

    cdef enum class MxElement(int32_t):
        pass

    cdef enum class ScaleRule(int32_t):
        pass

    cdef enum class ActivationKind(int32_t):
        pass

    cdef enum class ActivationFormat(int32_t):
        pass

    const char* kDTypeNames[]
    const char* kWeightFormatNames[]
    const char* kMxElementNames[]
    const char* kScaleRuleNames[]
    const char* kActivationFormatNames[]
    int count_of(const char* names[])
    const int kPanelRows

    cdef enum class Alpha(int32_t):
        kNone
        kPositive

    cdef cppclass ActivationRule:
        const char* name
        cbool gated
        Alpha takes
        float alpha
        float limit

    const ActivationRule kActivations[]
    const int kNumActivations

    cdef struct Activation:
        ActivationKind kind
        float alpha
        float limit

    cdef enum class Status:
        kOk
        kOutOfMemory

    cdef struct Rows:
        uint8_t* data
        int64_t stride
        DType dtype


cdef extern from "capi/include/mxfp4moe.h" nogil:
    const char* mxfp4moe_version()


cdef extern from "kernels/kernel_table.h" namespace "mxfp4moe" nogil:
    cdef cppclass KernelTable:
        const char* name
        const char* isa
        cbool automatic


cdef extern from "kernels/attention_kernels.h" namespace "mxfp4moe" nogil:
    const int64_t kBlockPositions

    cdef cppclass AttentionKernels:
        pass

    cdef struct KVLayout:
        int64_t num_kv_heads
        int64_t head_dim
        DType dtype

    int64_t page_bytes(const KVLayout& layout)


cdef extern from "kernels/activation_kernel.h" namespace "mxfp4moe" nogil:
    cdef struct ActivationArgs:
        const float* gate
        const float* up
        int64_t count
        Activation activation
        float* out


cdef extern from "kernels/registry.h" namespace "mxfp4moe" nogil:
    int num_kernel_tables()
    const KernelTable& kernel_table(int index)
    KernelTable kernel_table_for(int index, ActivationFormat format)
    cbool kernel_table_supported(int index)
    const AttentionKernels& attention_kernels(int index)
    void run_activate "mxfp4moe::activate"(
        int index, ActivationFormat format, const ActivationArgs& args, int num_threads)


cdef extern from "cpu/features.h" namespace "mxfp4moe" nogil:
    const unsigned int kCpuAvx2
    const unsigned int kCpuAvx512
    const unsigned int kCpuAvx512Bf16
    const unsigned int kCpuAvx512Vbmi
    const unsigned int kCpuAvx512Vnni
    const unsigned int kCpuAvxVnni
    const unsigned int kCpuAmxBf16
    const unsigned int kCpuFastBf16Dot
    unsigned int cpu_features()
    const char* amx_status()


cdef extern from "threads/cpus.h" namespace "mxfp4moe" nogil:
    int available_cpus()


cdef extern from "threads/pool.h" namespace "mxfp4moe" nogil:
    int num_workers()
    void release_workers()


cdef extern from "threads/interrupt.h" namespace "mxfp4moe" nogil:
    cdef cppclass InterruptibleCall:
        cbool interrupted() const

        @staticmethod
        void set_check(cbool (*check)() noexcept nogil)


cdef extern from "threads/float_environment.h" namespace "mxfp4moe" nogil:
    cdef cppclass DefaultFloatEnvironment:
        pass


cdef extern from "memory/mapping.h" namespace "mxfp4moe" nogil:
    uint8_t* map_memory(int64_t nbytes)
    void unmap_memory(uint8_t* data, int64_t nbytes)


cdef extern from "measure/roofline.h" namespace "mxfp4moe" nogil:
    uint64_t read_memory(const KernelTable& kernels, const uint8_t* data, int64_t nbytes, int num_threads)
    double peak_flops(const KernelTable& kernels, int64_t iterations, int num_threads)


cdef extern from "packing/copy_panels.h" namespace "mxfp4moe" nogil:
    cdef struct PanelCopy:
        const uint8_t* source
        uint8_t* target
        int64_t nbytes "bytes"
        int64_t num_panels

    void copy_panels(const PanelCopy& copy, int num_threads)


cdef extern from "packing/panels.h" namespace "mxfp4moe" nogil:
    const int kLayoutVersion
    cdef enum class RowOrder(int32_t):
        pass

    cdef struct SourceMatrix:
        WeightFormat format
        DType dtype
        const uint8_t* weights
        const uint8_t* scales
        const uint8_t* up_weights
        const uint8_t* up_scales
        int64_t num_rows
        int64_t k
        RowOrder order
        int64_t num_terms

    cdef struct PackedBytes:
        uint8_t* weights
        uint8_t* scales
        int64_t num_panels
        int64_t first_panel
        int64_t source_panels

    cdef struct PackedMatrix:
        WeightFormat format
        DType sum_dtype
        int64_t num_panels
        int64_t num_ranges
        int64_t scale_rows

    cdef struct SumScaleBlocks:
        pass

    cdef struct PackedSumScales:
        uint8_t* data
        DType dtype
        int64_t num_panels
        int64_t num_ranges
        int64_t scale_rows

    void pack_matrix(const SourceMatrix& source, const PackedBytes& packed, int num_threads)
    void unpack_matrix(const SourceMatrix& shape, const PackedBytes& packed, uint8_t* weights, uint8_t* scales,
                       int num_threads)
    int64_t count_terms(const SourceMatrix& source, int num_threads)
    void pack_sum_scales(const SumScaleBlocks& blocks, const uint8_t* scales, const PackedSumScales& packed)
    cbool unpack_sum_scales(const SumScaleBlocks& blocks, const PackedSumScales& packed, uint8_t* scales)

    cdef struct PackedBias:
        float* data
        int64_t num_panels

    void pack_bias(RowOrder order, int64_t num_rows, const float* bias, const PackedBias& packed)
    void unpack_bias(RowOrder order, int64_t num_rows, const PackedBias& packed, float* bias)


cdef extern from "packing/storage.h" namespace "mxfp4moe" nogil:
    const int kNumParts

    cdef struct MatrixFormat:
        WeightFormat weights
        int64_t block_rows
        int64_t block_k
        DType sum_dtype

    cdef struct StorageShape:
        MatrixFormat w13
        MatrixFormat w2
        int64_t num_experts
        int64_t hidden_size
        int64_t intermediate_size
        cbool gated
        cbool has_w13_bias
        cbool has_w2_bias
        cbool tensor_scales
        cbool interleaved
        cbool has_columns

    cdef enum class Part(int32_t):
        kWeights
        kScales
        kSumScales
        kBias
        kOffsets
        kColumns

    const char* kPartSuffixes[]
    int64_t first_outside(const int32_t* values, int64_t count, int64_t limit)

    cdef struct MatrixLayout:
        int64_t num_rows
        int64_t k
        RowOrder order
        PackedMatrix sizes
        SumScaleBlocks sum_blocks
        int64_t[6] offset
        int64_t[6] expert_bytes

    cdef struct StorageLayout:
        MatrixLayout w13
        MatrixLayout w2
        int64_t total

    cdef struct MatrixShape:
        MatrixFormat format
        int64_t num_rows
        int64_t k
        int64_t num_terms
        cbool has_bias
        cbool tensor_scale
        cbool has_columns

    cdef struct SingleLayout:
        MatrixLayout matrix
        int64_t total

    cdef struct PackedLayer:
        int64_t num_experts

    StorageLayout storage_layout(const StorageShape& shape)
    SingleLayout single_layout(const MatrixShape& shape)
    PackedLayer view_storage(const StorageShape& shape, const uint8_t* data)
    PackedLayer view_some(const StorageShape& shape, const uint8_t* data, const int32_t* places, int64_t num_experts)
    PackedMatrix view_single(const MatrixShape& shape, const uint8_t* data)


cdef extern from "moe/problem.h" namespace "mxfp4moe" nogil:
    cdef struct MoeProblem:
        PackedLayer layer
        Rows hidden_states
        Rows out
        const float* topk_weights
        const int32_t* local_ids
        int64_t num_tokens
        int64_t top_k
        Activation activation
        cbool apply_router_weight_on_input
        cbool combine


cdef extern from "moe/schedule.h" namespace "mxfp4moe" nogil:
    Status run_fused_experts "mxfp4moe::fused_experts"(
        const KernelTable& kernels, const MoeProblem& problem, int num_threads)


cdef extern from "moe/plan.h" namespace "mxfp4moe" nogil:
    cdef struct Team:
        int num_threads
        int num_nodes


cdef extern from "threads/nodes.h" namespace "mxfp4moe" nogil:
    const int kMaxNodes
    int num_nodes()
    void simulate_nodes(int count)


cdef extern from "moe/describe_plan.h" namespace "mxfp4moe" nogil:
    cdef struct PlanItem:
        int node
        int64_t expert
        int64_t pair_begin
        int64_t pair_end

    cdef struct CallPlan:
        int64_t chunk_tokens
        int num_threads
        vector[PlanItem] gate_up
        vector[PlanItem] down

    CallPlan describe_plan(const KernelTable& kernels, const MoeProblem& problem, Team team) except +


cdef extern from "linear/linear.h" namespace "mxfp4moe" nogil:
    cdef struct LinearProblem:
        MatrixShape shape
        PackedMatrix weight
        Rows hidden_states
        Rows out
        int64_t num_tokens

    Status run_linear "mxfp4moe::linear"(const KernelTable& kernels, const LinearProblem& problem, int num_threads)


cdef extern from "linear/rms_norm.h" namespace "mxfp4moe" nogil:
    cdef struct RmsNorm:
        Rows rows
        Rows out
        int64_t num_rows
        int64_t k
        const float* weight
        double epsilon

    void run_rms_norm "mxfp4moe::rms_norm"(const RmsNorm& norm, int num_threads)
    void run_mean_squares "mxfp4moe::mean_squares"(
        const Rows& rows, int64_t num_rows, int64_t k, double* means, int num_threads)


cdef extern from "attention/kv_page.h" namespace "mxfp4moe" nogil:
    cdef cppclass KVPage:
        cbool claim(int64_t begin, int64_t end)

    cdef struct NewPositions:
        const float* keys
        const float* values
        int64_t position
        int64_t num_tokens

    void fill_pages(const KVLayout& layout, const NewPositions& tokens, uint8_t* const* pages, int num_threads)


cdef extern from "attention/rotary.h" namespace "mxfp4moe" nogil:
    const int64_t kMaxAngle
    const int64_t kMaxPairs

    cdef struct Rotary:
        const float* x
        float* out
        int64_t num_tokens
        int64_t num_heads
        int64_t head_dim
        int64_t num_pairs
        cbool interleaved
        const int64_t* positions
        const double* frequencies
        double factor

    void run_rotary "mxfp4moe::rotary"(const Rotary& problem, int num_threads)


cdef extern from "attention/attention.h" namespace "mxfp4moe" nogil:
    cdef struct AttentionSequence:
        const float* queries
        int64_t num_queries
        const uint8_t* const* pages
        int64_t length
        uint8_t* out

    cdef struct AttentionProblem:
        const AttentionSequence* sequences
        int64_t num_sequences
        KVLayout layout
        int64_t num_heads
        int64_t window
        float scale
        const float* sinks
        DType out_dtype

    Status run_attention "mxfp4moe::attention"(
        const AttentionKernels& kernels, const AttentionProblem& problem, int num_threads)


cdef extern from "decoder/self_attention.h" namespace "mxfp4moe" nogil:
    cdef struct Linear:
        MatrixShape shape
        PackedMatrix weight

    cdef struct SelfAttention:
        int64_t hidden_size
        int64_t num_heads
        KVLayout layout
        double norm_epsilon
        const float* input_norm
        const Linear* projections
        int64_t num_projections
        Linear output
        const float* q_norm
        const float* k_norm
        cbool norms_whole
        cbool clips
        float clip
        const double* frequencies
        int64_t num_pairs
        double rotary_factor
        int64_t window
        float scale
        const float* sinks

    cdef struct NewTokens:
        int64_t num_tokens
        int64_t position
        uint8_t* const* pages

    cdef struct DecoderStep:
        float* residual
        const int64_t* positions
        int64_t num_tokens
        const NewTokens* sequences
        int64_t num_sequences

    cdef struct MatrixKernels:
        KernelTable table
        KernelTable preferred

    Status add_self_attention(const MatrixKernels& kernels, const AttentionKernels& attention_kernels,
                              const SelfAttention& layer, const DecoderStep& step, int num_threads)


cdef extern from "decoder/router.h" namespace "mxfp4moe" nogil:
    cdef struct Router:
        int64_t hidden_size
        double norm_epsilon
        const float* norm
        Linear weight

    cdef struct RouterStep:
        const float* residual
        int64_t num_tokens
        uint16_t* rows
        float* logits

    Status run_route_normalized "mxfp4moe::route_normalized"(
        const KernelTable& kernels, const Router& router, const RouterStep& step, int num_threads)


cdef extern from "routing/scores.h" namespace "mxfp4moe" nogil:
    void run_sigmoid "mxfp4moe::sigmoid"(const float* logits, int64_t n, float* scores)


cdef extern from "kernels/quantize_kernels.h" namespace "mxfp4moe" nogil:
    cdef struct MxArgs:
        const uint8_t* values
        DType dtype
        MxElement element
        ScaleRule scale_rule
        int64_t num_blocks
        uint8_t* codes
        uint8_t* scales

    cdef struct MxValuesArgs:
        const uint8_t* codes
        const uint8_t* scales
        MxElement element
        DType dtype
        int64_t num_blocks
        uint8_t* values

    cdef struct ScaleBlockArgs:
        const uint8_t* values
        DType dtype
        int64_t rows
        int64_t columns
        int64_t stride

    cdef struct ScaleBlockValuesArgs:
        const uint8_t* codes
        float scale
        int64_t rows
        int64_t columns
        int64_t stride
        DType dtype
        uint8_t* values

    cdef struct Nvfp4Args:
        const uint8_t* values
        DType dtype
        float tensor_scale
        int64_t num_blocks
        uint8_t* blocks
        uint8_t* scales

    cdef struct Nvfp4ValuesArgs:
        const uint8_t* blocks
        const uint8_t* scales
        float tensor_scale
        DType dtype
        int64_t num_blocks
        uint8_t* values


cdef extern from "quantize/quantize.h" namespace "mxfp4moe" nogil:
    cdef struct ScaleBlockGrid:
        int64_t num_matrices
        int64_t rows
        int64_t columns
        int64_t block_rows
        int64_t block_columns

    void quantize_mx(const KernelTable& kernels, const MxArgs& args, int num_threads)
    void dequantize_mx(const KernelTable& kernels, const MxValuesArgs& args, int num_threads)
    void quantize_fp8_block(const KernelTable& kernels, const ScaleBlockGrid& grid, const ScaleBlockArgs& values,
                            uint8_t* codes, float* scales, int num_threads)
    void dequantize_fp8_block(const KernelTable& kernels, const ScaleBlockGrid& grid, const ScaleBlockValuesArgs& args,
                              const float* scales, int num_threads)
    void quantize_nvfp4(const KernelTable& kernels, const Nvfp4Args& args, int64_t num_tensors, float* tensor_scales,
                        bint has_scales, int num_threads)
    void dequantize_nvfp4(const KernelTable& kernels, const Nvfp4ValuesArgs& args, int64_t num_tensors,
                          const float* tensor_scales, int num_threads)
    cdef struct IntegerGroups:
        const uint8_t* values
        DType dtype
        int bits
        int64_t num_groups
        int64_t group_size

    cdef struct IntegerArrays:
        uint8_t* codes
        float* scales
        uint8_t* zeros

    void quantize_integers(const IntegerGroups& groups, const IntegerArrays& to, int num_threads)
    void dequantize_integers(const IntegerGroups& groups, const IntegerArrays& arrays, uint8_t* values, int num_threads)
    void pack_e2m1(const uint8_t* codes, uint8_t* blocks, int64_t num_bytes, int num_threads)
    void unpack_e2m1(const uint8_t* blocks, uint8_t* codes, int64_t num_bytes, int num_threads)


cdef extern from "routing/ids.h" namespace "mxfp4moe" nogil:
    cdef struct IdTable:
        const uint8_t* data
        int64_t rows
        int64_t columns
        int64_t row_stride
        int64_t column_stride
        cbool is_int64

    cdef struct IdPosition:
        int64_t row
        int64_t column

    int64_t find_local_ids "mxfp4moe::local_ids"(
        const IdTable& ids, const int64_t* expert_map, int64_t num_ids, int32_t* local)
    IdPosition look_up_ids "mxfp4moe::hash_ids"(
        const int64_t* input_ids, int64_t num_tokens, const IdTable& table, int64_t num_experts, int32_t* topk_ids)


cdef extern from "routing/routing.h" namespace "mxfp4moe" nogil:
    const int64_t kNoRoutingMemory
    const int64_t kBadBias

    cdef enum class Scoring(int32_t):
        pass

    const char* kScoringNames[]

    cdef enum class GroupScore(int32_t):
        pass

    const char* kGroupScoreNames[]

    cdef struct ScoreRule:
        Scoring scoring
        float logit_softcap
        float jitter_eps

    cdef struct ChoiceRule:
        cbool ids_given
        cbool by_logit
        int64_t num_shared
        int64_t num_groups
        int64_t topk_group
        GroupScore group_score
        cbool zero_masked

    cdef struct WeightRule:
        cbool renormalize
        float norm_order
        float norm_epsilon
        float norm_floor
        float routed_scaling_factor

    cdef struct RoutingRule:
        ScoreRule score
        ChoiceRule choice
        WeightRule weight

    cdef struct RoutingArgs:
        const float* logits
        const float* correction_bias
        const float* expert_scale
        int64_t num_tokens
        int64_t num_experts
        int64_t num_slots
        RoutingRule rule
        float* topk_weights
        int32_t* topk_ids

    int64_t run_routing "mxfp4moe::route"(const RoutingArgs& args, int num_threads)


cdef extern from "files/crc32.h" namespace "mxfp4moe" nogil:
    uint32_t crc32(uint32_t crc, const uint8_t* data, int64_t nbytes, int num_threads)


cdef extern from "platform/system.h" namespace "mxfp4moe::platform" nogil:
    cbool exchange_names(const char* a, const char* b)
    int map_file(int descriptor, int64_t begin, int64_t nbytes, uint8_t** data)
    void unmap_file(uint8_t* data, int64_t nbytes)
    cbool expect_random_reads(uint8_t* data, int64_t nbytes)
    cbool request_pages(uint8_t* data, int64_t nbytes)
    cbool drop_pages(int descriptor, int64_t begin, uint8_t* data, int64_t nbytes)
