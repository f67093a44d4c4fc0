"""Every operation in plain NumPy: the definition that the compiled kernels are tested against.

It is written to be read, not to be fast, calls no compiled code of this package, and does not check its
arguments: those that the functions of `mxfp4moe` refuse give any result or error here.

Activations are bfloat16, sums are float32. A sum here is accumulated in float64 and rounded once to float32.
That gives the correctly rounded sum, whatever the order in which a BLAS adds. Where every partial sum is an
integer below 2**24, it is also what any order of float32 additions gives. For the same reason sigmoid, erf
and tanh are evaluated in float64 and rounded once. All else is ordinary float32 arithmetic in the order
written.
"""

from mxfp4moe.reference._precision import round_bfloat16
from mxfp4moe.reference.activation import activate, normal_cdf, normal_cdf_tanh, sigmoid, soft_clamp
from mxfp4moe.reference.attention import attention
from mxfp4moe.reference.elements import E2M1_VALUES, pack_e2m1, unpack_e2m1
from mxfp4moe.reference.int8 import quantize_activations
from mxfp4moe.reference.integers import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from mxfp4moe.reference.layer import moe_layer, moe_layer_float64
from mxfp4moe.reference.matrix import linear, linear_float64
from mxfp4moe.reference.moe import (
    ExpertArrays,
    arrays_of,
    fused_experts,
    fused_experts_float64,
)
from mxfp4moe.reference.norm import rms_factors, rms_norm
from mxfp4moe.reference.quantize import (
    dequantize_fp8_block,
    dequantize_mxfp4,
    dequantize_mxfp8,
    dequantize_nvfp4,
    quantize_fp8_block,
    quantize_mxfp4,
    quantize_mxfp8,
    quantize_nvfp4,
)
from mxfp4moe.reference.rotary import rotary_embedding, rotary_frequencies
from mxfp4moe.reference.routing import (
    grouped_topk,
    hash_topk,
    router_logits,
    select_experts,
    sparsemixer,
    topk_sigmoid,
    topk_softmax,
    topk_sqrt_softplus,
)
from mxfp4moe.reference.scores import softmax, sqrt_softplus

__all__ = [
    "E2M1_VALUES",
    "ExpertArrays",
    "activate",
    "arrays_of",
    "attention",
    "dequantize_fp8_block",
    "dequantize_int4",
    "dequantize_int8",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "dequantize_nvfp4",
    "fused_experts",
    "fused_experts_float64",
    "grouped_topk",
    "hash_topk",
    "linear",
    "linear_float64",
    "moe_layer",
    "moe_layer_float64",
    "normal_cdf",
    "normal_cdf_tanh",
    "pack_e2m1",
    "quantize_activations",
    "quantize_fp8_block",
    "quantize_int4",
    "quantize_int8",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "quantize_nvfp4",
    "rms_factors",
    "rms_norm",
    "rotary_embedding",
    "rotary_frequencies",
    "round_bfloat16",
    "router_logits",
    "select_experts",
    "sigmoid",
    "soft_clamp",
    "softmax",
    "sparsemixer",
    "sqrt_softplus",
    "topk_sigmoid",
    "topk_softmax",
    "topk_sqrt_softplus",
    "unpack_e2m1",
]
