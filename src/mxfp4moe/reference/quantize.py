"""Quantization."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe.reference.elements import (
    E2M1,
    E2M1_VALUES,
    E4M3,
    E5M2,
    Element,
    finite_blocks,
    pack_e2m1,
    round_once,
    round_to_element,
    unpack_e2m1,
    widen,
)


def quantize_mx(
    w: np.ndarray, element: Element, scale_rule: str, nonfinite: str
) -> tuple[np.ndarray, np.ndarray]:
    """Codes, one a byte, and one E8M0 scale per 32 values of the last axis.

    The scale exponent e of a block follows from its largest magnitude amax = m * 2**E, 1 <= m < 2, and the
    largest value of the element, v = m_max * 2**emax. It is E - emax or one more, clamped to [-127, 127]:

    - ``floor``: E - emax always, so that values above v * 2**e saturate;
    - ``ceil``: one more if m > 1;
    - ``rceil``: one more if m > m_max: the smallest e with amax <= v * 2**e;
    - ``even``: one more if m, rounded half up to the mantissa bits of the element, is 2.

    Each value divided by 2**e is rounded to the element as by `round_to_element`. The exceptions: a block of
    zeros of either sign has scale byte 0 and codes 0; with ``nonfinite="nan"`` a block with an infinity or a
    NaN has scale byte 255 (NaN) and codes 0.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64; K a multiple of 32. All steps are exact but the one rounding.
    element : Element
    scale_rule : {"floor", "ceil", "rceil", "even"}
    nonfinite : {"raise", "nan"}

    Returns
    -------
    codes : uint8 ndarray of shape (..., K)
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    Raises
    ------
    ValueError
        A value is not finite and `nonfinite` is "raise".
    """
    values, valid = finite_blocks(widen(w, np.float64), (*w.shape[:-1], w.shape[-1] // 32, 32), nonfinite)
    amax = np.abs(values).max(axis=-1)

    half_m, exponent = np.frexp(amax)  # amax = half_m * 2**exponent, 0.5 <= half_m < 1
    emax = element.max_exponent
    next_exponent = {
        "floor": np.zeros_like(valid),
        "ceil": half_m > 0.5,
        "rceil": half_m > element.magnitudes[-1] / 2.0 ** (emax + 1),
        "even": half_m >= 1 - 2.0 ** -(element.mantissa_bits + 2),
    }[scale_rule]
    e = np.clip(exponent - 1 - emax + next_exponent, -127, 127)
    codes = round_to_element(np.ldexp(values, -e[..., None]), element)

    zero = amax == 0
    codes = np.where(zero[..., None], 0, codes).astype(np.uint8)
    scales = np.where(valid, np.where(zero, 0, e + 127), 255).astype(np.uint8)
    return codes.reshape(w.shape), scales.view(ml_dtypes.float8_e8m0fnu)


def quantize_mxfp4(
    w: np.ndarray, scale_rule: str = "floor", nonfinite: str = "raise"
) -> tuple[np.ndarray, np.ndarray]:
    """MXFP4 of `w`, by `quantize_mx` with E2M1.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64; K is a multiple of 32.
    scale_rule : {"floor", "ceil", "rceil", "even"}
    nonfinite : {"raise", "nan"}

    Returns
    -------
    blocks : uint8 ndarray of shape (..., K/2)
        Two codes a byte, even k in the low nibble.
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023: ``floor``. The
    other scale rules are those of the MX formats of torchao.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> blocks, scales = reference.quantize_mxfp4(np.full(32, 6, np.float32))
    >>> blocks.shape, scales.astype(float).tolist()
    ((16,), [1.0])
    """
    codes, scales = quantize_mx(w, E2M1, scale_rule, nonfinite)
    return pack_e2m1(codes), scales


def quantize_mxfp8(
    w: np.ndarray, element: str = "e4m3", scale_rule: str = "floor", nonfinite: str = "raise"
) -> tuple[np.ndarray, np.ndarray]:
    """MXFP8 of `w`, by `quantize_mx` with E4M3 or E5M2.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64; K is a multiple of 32.
    element : {"e4m3", "e5m2"}
    scale_rule : {"floor", "ceil", "rceil", "even"}
    nonfinite : {"raise", "nan"}

    Returns
    -------
    values : float8_e4m3fn or float8_e5m2 ndarray of shape (..., K)
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023: ``floor``. The
    other scale rules are those of the MX formats of torchao.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> values, scales = reference.quantize_mxfp8(np.full(32, 448, np.float32))
    >>> values.dtype.name, scales.astype(float).tolist()
    ('float8_e4m3fn', [1.0])
    """
    codes, scales = quantize_mx(w, E4M3 if element == "e4m3" else E5M2, scale_rule, nonfinite)
    return codes.view(ml_dtypes.float8_e4m3fn if element == "e4m3" else ml_dtypes.float8_e5m2), scales


def dequantize_mxfp4(blocks: np.ndarray, scales: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Code times scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    blocks : ndarray of shape (..., K/2) or (..., K/32, 16)
        uint8 or int8.
    scales : ndarray of shape (..., K/32)
        uint8 or float8_e8m0fnu: byte s means 2**(s - 127), 255 means NaN.
    dtype : dtype
        float16, bfloat16, float32 or float64. A product too large for it is infinite.

    Returns
    -------
    ndarray of shape (..., K)

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> blocks, scales = reference.quantize_mxfp4(np.full(32, 1.5, np.float32))
    >>> reference.dequantize_mxfp4(blocks, scales)[:2].tolist()
    [1.5, 1.5]
    """
    shape = (*scales.shape[:-1], 32 * scales.shape[-1])
    values = E2M1_VALUES[unpack_e2m1(blocks).view(np.uint8).reshape(shape)]
    return round_once(values * np.repeat(_e8m0_values(scales), 32, axis=-1), dtype)


def dequantize_mxfp8(values: np.ndarray, scales: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Element times scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    values : float8_e4m3fn or float8_e5m2 ndarray of shape (..., K)
    scales : ndarray of shape (..., K/32)
        uint8 or float8_e8m0fnu: byte s means 2**(s - 127), 255 means NaN.
    dtype : dtype
        float16, bfloat16, float32 or float64.

    Returns
    -------
    ndarray of shape (..., K)

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> values, scales = reference.quantize_mxfp8(np.full(32, 1.5, np.float32))
    >>> reference.dequantize_mxfp8(values, scales)[:2].tolist()
    [1.5, 1.5]
    """
    with np.errstate(invalid="ignore"):  # infinity times NaN
        products = values.astype(np.float64) * np.repeat(_e8m0_values(scales), 32, axis=-1)
    return round_once(products, dtype)


def _e8m0_values(scales: np.ndarray) -> np.ndarray:
    exponents = scales.view(np.uint8).astype(np.int32) - 127
    return np.where(exponents == 128, np.nan, np.ldexp(1.0, exponents))


def float_scale(amax: np.ndarray, largest: float) -> np.ndarray:
    """float32(amax / largest), at least 2**-126 and at most the largest float32; 1 where amax is 0.

    `amax` is float64. For a float32 amax this is a float32 division: float64 has over twice the bits.
    """
    info = np.finfo(np.float32)
    scale = np.clip(amax / largest, float(info.smallest_normal), float(info.max)).astype(np.float32)
    return np.where(amax == 0, np.float32(1), scale)


def quantize_fp8_block(
    w: np.ndarray,
    block_shape: tuple[int | None, int | None] = (128, 128),
    nonfinite: str = "raise",
) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 and a float32 scale for each block of the last two axes.

    The scale is `float_scale(amax, 448)` of the block's largest magnitude. Each value divided by it, in
    float32 or, for float64 input, in float64, is rounded to E4M3 as by `round_to_element`. The exceptions: a
    block of zeros of either sign has codes 0; with ``nonfinite="nan"`` a block with an infinity or a NaN has
    scale NaN and codes 0.

    Parameters
    ----------
    w : ndarray of shape (..., N, K)
        float16, bfloat16, float32 or float64.
    block_shape : (int or None, int or None)
        None is the whole axis. The last blocks may be smaller.
    nonfinite : {"raise", "nan"}

    Returns
    -------
    values : float8_e4m3fn ndarray of shape (..., N, K)
    scales : float32 ndarray of shape (..., ceil(N / block_shape[0]), ceil(K / block_shape[1]))

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.3. FP8 Formats for Deep Learning,
    arXiv:2209.05433: E4M3.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> values, scales = reference.quantize_fp8_block(np.full((2, 2), 448, np.float32), (None, None))
    >>> scales.tolist()
    [[1.0]]
    """
    dtype = np.float64 if w.dtype == np.float64 else np.float32
    values = widen(w, dtype)
    if nonfinite == "raise":
        finite_blocks(values, values.shape, nonfinite)
    rows, columns = _block_of(w.shape, block_shape)
    n, k = (-(-size // block) for size, block in zip(w.shape[-2:], (rows, columns), strict=True))
    codes = np.zeros(w.shape, np.uint8)
    scales = np.ones((*w.shape[:-2], n, k), np.float32)
    for i, j in np.ndindex(n, k):
        at = (..., slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
        amax = widen(np.abs(values[at]).max(axis=(-2, -1)), np.float64)
        finite = np.isfinite(amax)
        scale = np.where(finite, float_scale(np.where(finite, amax, 0), 448), np.float32(np.nan))
        has_codes = finite & (amax > 0)
        divisor = np.where(has_codes, scale, 1).astype(dtype)[..., None, None]
        quotients = np.where(has_codes[..., None, None], values[at], 0) / divisor
        codes[at] = round_to_element(quotients, E4M3)
        scales[..., i, j] = scale
    return codes.view(ml_dtypes.float8_e4m3fn), scales


def dequantize_fp8_block(
    values: np.ndarray,
    scales: np.ndarray,
    block_shape: tuple[int | None, int | None] = (128, 128),
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Element times scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    values : ndarray of shape (..., N, K)
        float8_e4m3fn, or uint8 that are its codes.
    scales : float32 ndarray of shape (..., ceil(N / block_shape[0]), ceil(K / block_shape[1]))
    block_shape : (int or None, int or None)
        None is the whole axis.
    dtype : dtype
        float16, bfloat16, float32 or float64.

    Returns
    -------
    ndarray of shape (..., N, K)

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.3. FP8 Formats for Deep Learning,
    arXiv:2209.05433: E4M3.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> values, scales = reference.quantize_fp8_block(np.full((2, 3), 7.0, np.float32), (1, None))
    >>> reference.dequantize_fp8_block(values, scales, (1, None)).tolist()
    [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
    """
    (rows, columns), (n, k) = _block_of(values.shape, block_shape), values.shape[-2:]
    factors = widen(scales, np.float64).repeat(rows, axis=-2).repeat(columns, axis=-1)[..., :n, :k]
    elements = values.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0 times infinity
        return round_once(elements * factors, dtype)


def _block_of(shape: tuple[int, ...], block_shape: tuple[int | None, int | None]) -> tuple[int, int]:
    rows, columns = block_shape
    return rows or max(shape[-2], 1), columns or max(shape[-1], 1)


def quantize_nvfp4(
    w: np.ndarray, nonfinite: str = "raise", tensor_scale: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E2M1, an E4M3 scale per 16 values of the last axis, and a float32 scale per tensor, the last two axes.

    The tensor scale is `float_scale(amax, 448 * 6)` of the largest finite magnitude. All other arithmetic is
    float32, or float64 for float64 input: the block scale is ``amax / 6 / tensor_scale`` of the block's
    largest magnitude, rounded to E4M3; each value divided by ``block scale * tensor scale`` is rounded to
    E2M1, both as by `round_to_element`. The exceptions: a block whose scale is zero has codes 0; with
    ``nonfinite="nan"`` a block with an infinity or a NaN has scale NaN (byte 127) and codes 0.

    Parameters
    ----------
    w : ndarray of shape (..., N, K) or (K,)
        float16, bfloat16, float32 or float64; K a multiple of 16.
    nonfinite : {"raise", "nan"}
    tensor_scale : ndarray of shape (...) or (), optional
        float32; used instead of the one that follows from the magnitudes.

    Returns
    -------
    blocks : uint8 ndarray of shape (..., N, K/2) or (K/2,)
    scales : float8_e4m3fn ndarray of shape (..., N, K/16) or (K/16,)
    tensor_scale : float32 ndarray of shape (...) or ()

    References
    ----------
    Pretraining Large Language Models with NVFP4, arXiv:2509.25149.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> blocks, scales, tensor_scale = reference.quantize_nvfp4(np.full(16, 6 * 448, np.float32))
    >>> scales.astype(float).tolist(), float(tensor_scale)
    ([448.0], 1.0)
    """
    dtype = np.float64 if w.dtype == np.float64 else np.float32
    values = widen(w, dtype)
    blocks, valid = finite_blocks(values, (*w.shape[:-1], w.shape[-1] // 16, 16), nonfinite)
    if tensor_scale is None:
        tensors = np.where(np.isfinite(values), np.abs(values), 0).reshape(*w.shape[:-2], -1)
        tensor_scale = float_scale(tensors.max(axis=-1, initial=0).astype(np.float64), 448 * 6)
    factor = tensor_scale.astype(dtype).reshape(*w.shape[:-2], *[1] * min(w.ndim, 2))

    amax = np.abs(blocks).max(axis=-1)
    scale_codes = round_to_element(amax / dtype(6) / factor, E4M3)
    scales = E4M3.magnitudes[scale_codes].astype(dtype)
    divisor = np.where(scales == 0, dtype(1), scales * factor)
    codes = np.where(scale_codes[..., None] == 0, 0, round_to_element(blocks / divisor[..., None], E2M1))
    scale_codes = np.where(valid, scale_codes, 127).astype(np.uint8)
    packed = pack_e2m1(codes.astype(np.uint8).reshape(w.shape))
    return packed, scale_codes.view(ml_dtypes.float8_e4m3fn), tensor_scale


def dequantize_nvfp4(
    blocks: np.ndarray, scales: np.ndarray, tensor_scale: np.ndarray, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Element times block scale times tensor scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    blocks : uint8 ndarray of shape (..., N, K/2) or (K/2,)
    scales : float8_e4m3fn or uint8 ndarray of shape (..., N, K/16) or (K/16,)
    tensor_scale : float32 ndarray of shape (...) or ()
    dtype : dtype
        float16, bfloat16, float32 or float64.

    Returns
    -------
    ndarray of shape (..., N, K) or (K,)

    References
    ----------
    Pretraining Large Language Models with NVFP4, arXiv:2509.25149.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.dequantize_nvfp4(*reference.quantize_nvfp4(np.zeros(16, np.float32))).shape
    (16,)
    """
    elements = E2M1_VALUES[unpack_e2m1(blocks).view(np.uint8)].astype(np.float64)
    block_scales = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    tensor_scale = np.asarray(tensor_scale)
    factor = tensor_scale.astype(np.float64).reshape(*tensor_scale.shape, *[1] * min(blocks.ndim, 2))
    with np.errstate(invalid="ignore"):  # 0 times infinity
        return round_once(elements * np.repeat(block_scales, 16, axis=-1) * factor, dtype)
