# Quantizers and their inverses. Included by _core.pyx.

def quantize_mx(const uint8_t[::1] values, uint8_t[::1] codes, uint8_t[::1] scales, int kernels, int num_threads, *,
                int dtype, int element, int scale_rule):
    """Write the codes and the scale byte of each block of 32 values."""
    cdef cpp.InterruptibleCall call
    cdef cpp.MxArgs args
    args.values = &values[0]
    args.dtype = <cpp.DType>dtype
    args.element = <cpp.MxElement>element
    args.scale_rule = <cpp.ScaleRule>scale_rule
    args.num_blocks = scales.shape[0]
    args.codes = &codes[0]
    args.scales = &scales[0]
    with nogil:
        cpp.quantize_mx(cpp.kernel_table(kernels), args, num_threads)
    raise_interrupt(call)


def dequantize_mx(const uint8_t[::1] codes, const uint8_t[::1] scales, uint8_t[::1] values, int kernels,
                  int num_threads, *, int dtype, int element):
    """Write the values of what `quantize_mx` wrote."""
    cdef cpp.InterruptibleCall call
    cdef cpp.MxValuesArgs args
    args.codes = &codes[0]
    args.scales = &scales[0]
    args.dtype = <cpp.DType>dtype
    args.element = <cpp.MxElement>element
    args.num_blocks = scales.shape[0]
    args.values = &values[0]
    with nogil:
        cpp.dequantize_mx(cpp.kernel_table(kernels), args, num_threads)
    raise_interrupt(call)


cdef cpp.ScaleBlockGrid scale_block_grid(shape, block_shape):
    cdef cpp.ScaleBlockGrid grid
    grid.num_matrices, grid.rows, grid.columns = shape
    grid.block_rows, grid.block_columns = block_shape
    return grid


def quantize_fp8_block(const uint8_t[::1] values, int dtype, shape, block_shape, uint8_t[::1] codes, float[::1] scales,
                       int kernels, int num_threads):
    """Write the codes of matrices, `shape` is (matrices, rows, columns), and the scale of each of their blocks."""
    cdef cpp.InterruptibleCall call
    cdef cpp.ScaleBlockGrid grid = scale_block_grid(shape, block_shape)
    cdef cpp.ScaleBlockArgs args
    args.values = &values[0]
    args.dtype = <cpp.DType>dtype
    args.rows = grid.rows
    args.columns = args.stride = grid.columns
    with nogil:
        cpp.quantize_fp8_block(cpp.kernel_table(kernels), grid, args, &codes[0], &scales[0], num_threads)
    raise_interrupt(call)


def dequantize_fp8_block(const uint8_t[::1] codes, const float[::1] scales, shape, block_shape, int dtype,
                         uint8_t[::1] values, int kernels, int num_threads):
    """Write the values of what `quantize_fp8_block` wrote."""
    cdef cpp.InterruptibleCall call
    cdef cpp.ScaleBlockGrid grid = scale_block_grid(shape, block_shape)
    cdef cpp.ScaleBlockValuesArgs args
    args.codes = &codes[0]
    args.scale = 1.0
    args.rows = grid.rows
    args.columns = args.stride = grid.columns
    args.dtype = <cpp.DType>dtype
    args.values = &values[0]
    with nogil:
        cpp.dequantize_fp8_block(cpp.kernel_table(kernels), grid, args, &scales[0], num_threads)
    raise_interrupt(call)


def quantize_nvfp4(const uint8_t[::1] values, int dtype, uint8_t[::1] blocks, uint8_t[::1] scales,
                   float[::1] tensor_scales, bint has_scales, int kernels, int num_threads):
    """Write the 8 code bytes and the scale byte of each block of 16 values.

    The scale of each tensor is written too, or with `has_scales` it is what `tensor_scales` has.
    """
    cdef cpp.InterruptibleCall call
    cdef cpp.Nvfp4Args args
    args.values = &values[0]
    args.dtype = <cpp.DType>dtype
    args.tensor_scale = 1.0
    args.num_blocks = scales.shape[0] // tensor_scales.shape[0]
    args.blocks = &blocks[0]
    args.scales = &scales[0]
    with nogil:
        cpp.quantize_nvfp4(cpp.kernel_table(kernels), args, tensor_scales.shape[0], &tensor_scales[0], has_scales,
                           num_threads)
    raise_interrupt(call)


def dequantize_nvfp4(const uint8_t[::1] blocks, const uint8_t[::1] scales, const float[::1] tensor_scales, int dtype,
                     uint8_t[::1] values, int kernels, int num_threads):
    """Write the values of what `quantize_nvfp4` wrote."""
    cdef cpp.InterruptibleCall call
    cdef cpp.Nvfp4ValuesArgs args
    args.blocks = &blocks[0]
    args.scales = &scales[0]
    args.tensor_scale = 1.0
    args.dtype = <cpp.DType>dtype
    args.num_blocks = scales.shape[0] // tensor_scales.shape[0]
    args.values = &values[0]
    with nogil:
        cpp.dequantize_nvfp4(cpp.kernel_table(kernels), args, tensor_scales.shape[0], &tensor_scales[0], num_threads)
    raise_interrupt(call)


cdef cpp.IntegerArrays integer_arrays(const uint8_t[::1] codes, const float[::1] scales,
                                      const uint8_t[::1] zeros) noexcept:
    """The arrays of `quantize_integers`, which writes them, or of its inverse."""
    cdef cpp.IntegerArrays arrays
    arrays.codes = <uint8_t*>&codes[0]
    arrays.scales = <float*>&scales[0]
    arrays.zeros = NULL
    if zeros is not None:
        arrays.zeros = <uint8_t*>&zeros[0]
    return arrays


def quantize_integers(const uint8_t[::1] values, int dtype, int bits, uint8_t[::1] codes, float[::1] scales,
                      uint8_t[::1] zeros, int num_threads):
    """Write the codes, the scale and, unless `zeros` is None, the zero point of each group of values."""
    cdef cpp.InterruptibleCall call
    cdef cpp.IntegerGroups groups
    cdef cpp.IntegerArrays arrays = integer_arrays(codes, scales, zeros)
    groups.values = &values[0]
    groups.dtype = <cpp.DType>dtype
    groups.bits = bits
    groups.num_groups = scales.shape[0]
    groups.group_size = codes.shape[0] * 8 // bits // scales.shape[0]
    with nogil:
        cpp.quantize_integers(groups, arrays, num_threads)
    raise_interrupt(call)


def dequantize_integers(const uint8_t[::1] codes, const float[::1] scales, const uint8_t[::1] zeros, int dtype,
                        int bits, uint8_t[::1] values, int num_threads):
    """Write the values of what `quantize_integers` wrote."""
    cdef cpp.InterruptibleCall call
    cdef cpp.IntegerGroups groups
    cdef cpp.IntegerArrays arrays = integer_arrays(codes, scales, zeros)
    groups.values = NULL
    groups.dtype = <cpp.DType>dtype
    groups.bits = bits
    groups.num_groups = scales.shape[0]
    groups.group_size = codes.shape[0] * 8 // bits // scales.shape[0]
    with nogil:
        cpp.dequantize_integers(groups, arrays, &values[0], num_threads)
    raise_interrupt(call)


def pack_e2m1(const uint8_t[::1] codes, uint8_t[::1] blocks, int num_threads):
    """Pack each two codes, of one byte each, into one byte of `blocks`."""
    cdef cpp.InterruptibleCall call
    with nogil:
        cpp.pack_e2m1(&codes[0], &blocks[0], blocks.shape[0], num_threads)
    raise_interrupt(call)


def unpack_e2m1(const uint8_t[::1] blocks, uint8_t[::1] codes, int num_threads):
    """Unpack what `pack_e2m1` packed."""
    cdef cpp.InterruptibleCall call
    with nogil:
        cpp.unpack_e2m1(&blocks[0], &codes[0], blocks.shape[0], num_threads)
    raise_interrupt(call)
