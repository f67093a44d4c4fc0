# Packed weights, the fused experts and router logits. Included by _core.pyx.

# --- packed experts -----------------------------------------------------------------------------------------

def version():
    """Return the version of the library, which is that of the package."""
    return cpp.mxfp4moe_version().decode()


def layout_version():
    """Return the number of the packed layout."""
    return cpp.kLayoutVersion


cdef cpp.MatrixFormat matrix_format(numbers):
    """The format of a matrix, of (format of weights, rows and columns of a block of scales of sums, dtype of these).

    Where rows or columns are 0, a block is the whole axis.
    """
    cdef cpp.MatrixFormat format
    cdef int weights, dtype
    weights, format.block_rows, format.block_k, dtype = numbers
    format.weights = <cpp.WeightFormat>weights
    format.sum_dtype = <cpp.DType>dtype
    return format


cdef class PackedStorage:
    """The packed bytes of matrices: one block of memory, exported read-only.

    It is empty, to be packed into, or made of packed bytes, which stay where they are if they are aligned for the
    kernels.
    The parts of a matrix are its weights, block scales, float32 scales of sums, bias, offsets, and the order of its
    columns; a part holds the same number of bytes for each expert. Of packed bytes that are there, some experts alone
    may be counted: `places` then has the place of each. Their bytes lie scattered, so that nothing is exported.
    """

    cdef int64_t num_terms
    cdef cpp.MatrixLayout[2] layouts
    cdef tuple names  # of the matrices, in their order
    cdef int64_t total
    cdef uint8_t* data
    cdef const uint8_t[::1] borrowed  # keeps alive what `data` points to, if that is not its own
    cdef bint owned
    cdef const int32_t* places  # of the experts that are counted, or NULL if all are
    cdef const int32_t[::1] places_array  # keeps it alive
    cdef int64_t num_counted
    cdef int64_t num_experts

    cdef int hold(self, const uint8_t[::1] bytes, what) except -1:
        """Take the packed bytes, or new memory for them if they are None; `what` names them in errors."""
        if bytes is not None and bytes.shape[0] != self.total:
            raise ValueError(f"bytes: expected {self.total}, got {bytes.shape[0]}")
        if bytes is not None and <uintptr_t>&bytes[0] % 64 == 0:
            self.borrowed = bytes
            self.data = <uint8_t*>&bytes[0]
            return 0
        self.data = cpp.map_memory(self.total) if self.total >= 0 else NULL
        self.owned = True
        if self.data == NULL:
            raise MemoryError(f"no memory for {what}")
        if bytes is not None:
            memcpy(self.data, &bytes[0], bytes.shape[0])
        return 0

    def __dealloc__(self):
        if self.data != NULL and self.owned:
            cpp.unmap_memory(self.data, self.total)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.places != NULL:
            raise BufferError("the bytes of some experts are scattered")
        PyBuffer_FillInfo(view, self, self.data, self.total, True, flags)

    @property
    def nbytes(self):
        return self.total

    def parts(self):
        """Return (name, offset, bytes of an expert) of each part that is not empty."""
        cdef cpp.MatrixLayout* m
        cdef int i, index
        result = []
        for index, name in enumerate(self.names):
            m = &self.layouts[index]
            for i in range(cpp.kNumParts):
                if m.expert_bytes[i]:
                    result.append((name + cpp.kPartSuffixes[i].decode(), m.offset[i], m.expert_bytes[i]))
        return result

    cdef uint8_t* part(self, int matrix, int part, int64_t expert) noexcept:
        cdef cpp.MatrixLayout* m = &self.layouts[matrix]
        if self.places != NULL:
            expert = self.places[expert]
        return self.data + m.offset[part] + expert * m.expert_bytes[part]

    cdef cpp.SourceMatrix source(self, int matrix, cpp.DType dtype) noexcept:
        cdef cpp.SourceMatrix m
        m.format = self.layouts[matrix].sizes.format
        m.dtype = dtype
        m.weights = m.scales = m.up_weights = m.up_scales = NULL
        m.num_rows = self.layouts[matrix].num_rows
        m.k = self.layouts[matrix].k
        m.order = self.layouts[matrix].order
        m.num_terms = self.num_terms
        return m

    cdef cpp.PackedBytes packed(self, int matrix, int64_t expert) noexcept:
        cdef cpp.PackedBytes p
        p.weights = self.part(matrix, <int>cpp.Part.kWeights, expert)
        p.scales = self.part(matrix, <int>cpp.Part.kScales, expert)
        p.num_panels = self.layouts[matrix].sizes.num_panels // self.num_terms
        return p

    cdef cpp.PackedSumScales sum_scales(self, int matrix, int64_t expert, bint offsets) noexcept:
        cdef cpp.PackedSumScales p
        p.data = self.part(matrix, <int>(cpp.Part.kOffsets if offsets else cpp.Part.kSumScales), expert)
        p.dtype = self.layouts[matrix].sizes.sum_dtype
        p.num_panels = self.layouts[matrix].sizes.num_panels
        p.num_ranges = self.layouts[matrix].sizes.num_ranges
        p.scale_rows = self.layouts[matrix].sizes.scale_rows
        return p

    cdef cpp.PackedBias bias(self, int matrix, int64_t expert) noexcept:
        cdef cpp.PackedBias p
        p.data = <float*>self.part(matrix, <int>cpp.Part.kBias, expert)
        p.num_panels = self.layouts[matrix].sizes.num_panels // self.num_terms
        return p

    cdef int64_t count(self) noexcept:
        """How many experts are counted; a matrix that belongs to none is one."""
        return self.num_experts if self.places == NULL else self.num_counted

    def copy_to(self, PackedStorage other, int num_threads):
        """Copy the experts that are counted to `other`, which is new memory for so many."""
        cdef cpp.InterruptibleCall call
        cdef cpp.PanelCopy copy
        cdef int64_t expert
        cdef int matrix, part
        sizes = [[(name, size) for name, _, size in storage.parts()] for storage in (self, other)]
        if sizes[0] != sizes[1] or not other.owned or other.count() != self.count():
            raise ValueError(f"other: expected memory for {self.count()} experts of the same spec")
        for matrix in range(len(self.names)):
            copy.num_panels = self.layouts[matrix].sizes.num_panels // self.num_terms
            for part in range(cpp.kNumParts):
                copy.nbytes = self.layouts[matrix].expert_bytes[part]
                for expert in range(self.count() if copy.nbytes else 0):
                    copy.source, copy.target = self.part(matrix, part, expert), other.part(matrix, part, expert)
                    with nogil:
                        cpp.copy_panels(copy, num_threads)
        raise_interrupt(call)

    def pack(self, int matrix, int64_t expert, weights, scales, int dtype, int num_threads, int64_t first_row=-1):
        """Pack the weights and block scales of one matrix of one expert.

        Both are sequences of one array of byte rows, or of two, if gate and up came apart; `scales` may be empty.
        If `first_row` is given, they are some rows from that one on, which is the first of a panel.
        """
        cdef cpp.InterruptibleCall call
        cdef cpp.SourceMatrix m = self.source(matrix, <cpp.DType>dtype)
        cdef cpp.PackedBytes packed = self.packed(matrix, expert)
        cdef const uint8_t[:, ::1] first = weights[0], second = weights[len(weights) - 1]
        cdef const uint8_t[:, ::1] first_scales, second_scales
        m.weights = &first[0, 0]
        if len(weights) == 2:
            m.up_weights = &second[0, 0]
        if len(scales) > 0:
            first_scales, second_scales = scales[0], scales[len(scales) - 1]
            m.scales = &first_scales[0, 0]
            if len(scales) == 2:
                m.up_scales = &second_scales[0, 0]
        if first_row >= 0:
            m.num_rows = first.shape[0]
            packed.first_panel = first_row // cpp.kPanelRows
            packed.source_panels = (m.num_rows + cpp.kPanelRows - 1) // cpp.kPanelRows
        with nogil:
            cpp.pack_matrix(m, packed, num_threads)
        raise_interrupt(call)

    def unpack(self, int matrix, int64_t expert, uint8_t[:, ::1] weights, uint8_t[:, ::1] scales, int num_threads):
        """Unpack what `pack` packed, gate and up into one array; `scales` may be None. Sums of terms are float32."""
        cdef cpp.InterruptibleCall call
        cdef cpp.SourceMatrix m = self.source(matrix, cpp.DType.kFloat32)
        cdef cpp.PackedBytes packed = self.packed(matrix, expert)
        cdef uint8_t* scale_bytes = NULL
        if scales is not None:
            scale_bytes = &scales[0, 0]
        with nogil:
            cpp.unpack_matrix(m, packed, &weights[0, 0], scale_bytes, num_threads)
        raise_interrupt(call)

    def pack_sum_scales(self, int matrix, int64_t expert, const uint8_t[:, ::1] scales, bint offsets=False):
        """Store the bytes of one expert's scales of sums, or offsets: gate before up rows if they are blocked apart."""
        cpp.pack_sum_scales(self.layouts[matrix].sum_blocks, &scales[0, 0], self.sum_scales(matrix, expert, offsets))

    def unpack_sum_scales(self, int matrix, int64_t expert, uint8_t[:, ::1] scales, bint offsets=False):
        """Read what `pack_sum_scales` stored; return whether the copies of each scale agree."""
        cdef cpp.PackedSumScales packed = self.sum_scales(matrix, expert, offsets)
        return cpp.unpack_sum_scales(self.layouts[matrix].sum_blocks, packed, &scales[0, 0])

    def pack_bias(self, int matrix, int64_t expert, const float[::1] bias):
        """Store one expert's bias in packed row order, zeros in the padding."""
        cpp.pack_bias(self.layouts[matrix].order, bias.shape[0], &bias[0], self.bias(matrix, expert))

    def unpack_bias(self, int matrix, int64_t expert, float[::1] bias):
        """Read what `pack_bias` stored."""
        cpp.unpack_bias(self.layouts[matrix].order, bias.shape[0], self.bias(matrix, expert), &bias[0])


cdef class ExpertStorage(PackedStorage):
    """The packed bytes of all experts of one layer; its matrices are w13 (0) and w2 (1)."""

    cdef cpp.StorageShape shape

    def __cinit__(self, const uint8_t[::1] bytes=None, *, w13_format, w2_format, int64_t num_experts,
                  int64_t hidden_size, int64_t intermediate_size, bint gated=True, bint has_w13_bias=False,
                  bint has_w2_bias=False, bint interleaved=False, bint tensor_scales=False, bint has_columns=False):
        cdef cpp.StorageLayout layout
        cdef int64_t i
        cdef int32_t* columns
        self.shape.w13, self.shape.w2 = matrix_format(w13_format), matrix_format(w2_format)
        self.shape.num_experts = self.num_experts = num_experts
        self.shape.hidden_size = hidden_size
        self.shape.intermediate_size = intermediate_size
        self.shape.gated = gated
        self.shape.has_w13_bias = has_w13_bias
        self.shape.has_w2_bias = has_w2_bias
        self.shape.tensor_scales = tensor_scales
        self.shape.interleaved = interleaved
        self.shape.has_columns = has_columns
        layout = cpp.storage_layout(self.shape)
        self.num_terms = 1
        self.layouts[0], self.layouts[1] = layout.w13, layout.w2
        self.names = "w13", "w2"
        self.total = layout.total
        self.hold(bytes, f"{num_experts} packed experts of {hidden_size} x {intermediate_size}")
        if has_columns and bytes is not None:  # which hidden states are read by
            columns = <int32_t*>self.part(0, <int>cpp.Part.kColumns, 0)
            i = cpp.first_outside(columns, num_experts * hidden_size, hidden_size)
            if i < num_experts * hidden_size:
                raise ValueError(f"w13_columns: expected values in [0, {hidden_size - 1}], got {columns[i]}")

    def pack_columns(self, int64_t expert, const int32_t[::1] columns):
        """Store the order of the columns of one expert's w13."""
        memcpy(self.part(0, <int>cpp.Part.kColumns, expert), &columns[0], columns.shape[0] * sizeof(int32_t))

    def unpack_columns(self, int64_t expert, int32_t[::1] columns):
        """Read what `pack_columns` stored."""
        memcpy(&columns[0], self.part(0, <int>cpp.Part.kColumns, expert), columns.shape[0] * sizeof(int32_t))

    def select(self, const int32_t[::1] places):
        """Count the experts at these places alone; called once, before any other use."""
        cdef int64_t i
        if places.shape[0] == 0 or self.places != NULL or self.owned:
            raise ValueError("places: expected some of packed bytes that are there, once")
        i = cpp.first_outside(&places[0], places.shape[0], self.shape.num_experts)
        if i < places.shape[0]:
            raise ValueError(f"places: expected values in [0, {self.shape.num_experts - 1}], got {places[i]}")
        self.places_array, self.places, self.num_counted = places, &places[0], places.shape[0]

    def selection(self):
        """Return the bytes of all experts, and the places of those that are counted, or None."""
        if self.places == NULL:
            return self, None
        return self.borrowed, self.places_array

    cdef cpp.PackedLayer view(self) noexcept:
        if self.places == NULL:
            return cpp.view_storage(self.shape, self.data)
        return cpp.view_some(self.shape, self.data, self.places, self.num_counted)

    def view_bytes(self):
        """Return the bytes of the structure by which the library of the same build finds the experts' memory."""
        cdef cpp.PackedLayer layer = self.view()
        return (<const char*>&layer)[:sizeof(layer)]

    @property
    def num_places(self):
        return self.shape.num_experts

    @property
    def has_tensor_scales(self):
        return self.shape.tensor_scales


# --- fused experts ------------------------------------------------------------------------------------------

ctypedef fused id_t:
    int32_t
    int64_t


cdef cpp.IdTable id_table(const id_t[:, :] ids) noexcept:
    cdef cpp.IdTable table
    table.data = <const uint8_t*>&ids[0, 0]
    table.rows, table.columns = ids.shape[0], ids.shape[1]
    table.row_stride, table.column_stride = ids.strides[0], ids.strides[1]
    table.is_int64 = id_t is int64_t
    return table


def local_ids(ids, const int64_t[::1] expert_map, int64_t num_ids, int32_t[:, ::1] result):
    """Write the local expert id, or -1, of each slot; return the flat position of the first id out of range, or -1."""
    # A function of fused types that Python calls finds its types more slowly, above all under the stable ABI.
    if ids.itemsize == sizeof(int64_t):
        return find_local_ids[int64_t](ids, expert_map, num_ids, result)
    return find_local_ids[int32_t](ids, expert_map, num_ids, result)


cdef int64_t find_local_ids(const id_t[:, :] ids, const int64_t[::1] expert_map, int64_t num_ids,
                            int32_t[:, ::1] result) noexcept:
    cdef cpp.IdTable table = id_table(ids)
    cdef const int64_t* mapping = NULL
    cdef int64_t first_bad
    if expert_map is not None:
        mapping = &expert_map[0]
    with nogil:
        first_bad = cpp.find_local_ids(table, mapping, num_ids, &result[0, 0])
    return first_bad


def fused_experts(ExpertStorage experts, int kernels, const uint8_t[:, :] hidden_states, int hidden_dtype,
                  const float[:, ::1] topk_weights, const int32_t[:, ::1] ids, uint8_t[:, :] out, int out_dtype,
                  int num_threads, *, int activation, float alpha, float limit, bint apply_router_weight_on_input,
                  int activation_format, bint combine=True):
    """Run the kernels of table `kernels`; rows of `hidden_states` and `out` are bytes.

    `out` has a row for each token, or, without `combine`, for each slot.
    """
    cdef cpp.InterruptibleCall call
    cdef cpp.KernelTable table = cpp.kernel_table_for(kernels, <cpp.ActivationFormat>activation_format)
    cdef cpp.MoeProblem problem
    cdef cpp.Status status
    problem.layer = experts.view()
    problem.hidden_states.data = <uint8_t*>&hidden_states[0, 0]
    problem.hidden_states.stride = hidden_states.strides[0]
    problem.hidden_states.dtype = <cpp.DType>hidden_dtype
    problem.out.data = &out[0, 0]
    problem.out.stride = out.strides[0]
    problem.out.dtype = <cpp.DType>out_dtype
    problem.topk_weights = &topk_weights[0, 0]
    problem.local_ids = &ids[0, 0]
    problem.num_tokens = ids.shape[0]
    problem.top_k = ids.shape[1]
    problem.activation.kind = <cpp.ActivationKind>activation
    problem.activation.alpha = alpha
    problem.activation.limit = limit
    problem.apply_router_weight_on_input = apply_router_weight_on_input
    problem.combine = combine
    with nogil:
        status = cpp.run_fused_experts(table, problem, num_threads)
    raise_interrupt(call)
    if status == cpp.Status.kOutOfMemory:
        raise MemoryError("no memory for the workspace of fused_experts")


def plan_call(ExpertStorage experts, int kernels, const int32_t[:, ::1] ids, int num_threads, int num_nodes):
    """Return how `fused_experts` would cut a call: (tokens of a chunk, threads, items of GEMM 1, items of GEMM 2).

    An item is (NUMA node, expert, first, end): panel pairs of an expert, of all experts if it is -1. No weight is
    looked at.
    """
    cdef cpp.MoeProblem problem
    cdef cpp.CallPlan plan
    cdef int64_t first_bad, num_experts = experts.view().num_experts
    if ids.shape[0] == 0 or ids.shape[1] == 0 or num_threads < 1 or not 1 <= num_nodes <= cpp.kMaxNodes:
        raise ValueError(f"ids {ids.shape[0]} x {ids.shape[1]}, {num_threads} threads, {num_nodes} nodes: no plan")
    first_bad = cpp.find_local_ids(id_table[int32_t](ids), NULL, num_experts, NULL)
    if first_bad >= 0:
        raise ValueError(f"ids: expected values in [-1, {num_experts - 1}], got {(&ids[0, 0])[first_bad]}")
    memset(&problem, 0, sizeof(problem))
    problem.layer = experts.view()
    problem.combine = True
    problem.local_ids = &ids[0, 0]
    problem.num_tokens = ids.shape[0]
    problem.top_k = ids.shape[1]
    plan = cpp.describe_plan(cpp.kernel_table(kernels), problem, cpp.Team(num_threads, num_nodes))
    return plan.chunk_tokens, plan.num_threads, plan_items(plan.gate_up), plan_items(plan.down)


cdef list plan_items(const vector[cpp.PlanItem]& items):
    cdef size_t i
    return [(items[i].node, items[i].expert, items[i].pair_begin, items[i].pair_end) for i in range(items.size())]


# --- linear -------------------------------------------------------------------------------------------------

cdef class LinearStorage(PackedStorage):
    """The packed bytes of one matrix."""

    cdef cpp.MatrixShape shape

    def __cinit__(self, const uint8_t[::1] bytes=None, *, format, int64_t num_rows, int64_t k, int64_t num_terms=1,
                  bint has_bias=False, bint tensor_scale=False):
        """A weight is the sum of `num_terms` bfloat16 numbers."""
        cdef cpp.SingleLayout layout
        self.shape.format = matrix_format(format)
        self.shape.num_rows = num_rows
        self.shape.k = k
        self.shape.num_terms = num_terms
        self.shape.has_bias = has_bias
        self.shape.tensor_scale = tensor_scale
        self.shape.has_columns = False
        layout = cpp.single_layout(self.shape)
        self.num_terms, self.num_experts = num_terms, 1
        self.layouts[0] = layout.matrix
        self.names = ("weight",)
        self.total = layout.total
        self.hold(bytes, f"a packed matrix of {num_rows} x {k}")


def count_terms(const uint8_t[:, ::1] rows, int dtype, int num_threads):
    """Return how many bfloat16 numbers the float32 or float16 numbers of `rows`, in bytes, are the sums of."""
    cdef cpp.InterruptibleCall call
    cdef cpp.SourceMatrix m
    cdef int64_t count
    m.format = cpp.WeightFormat.kBf16
    m.dtype = <cpp.DType>dtype
    m.weights = &rows[0, 0]
    m.num_rows = rows.shape[0]
    m.k = rows.shape[1] // (4 if m.dtype == cpp.DType.kFloat32 else 2)
    with nogil:
        count = cpp.count_terms(m, num_threads)
    raise_interrupt(call)
    return count


def linear(LinearStorage weight, int kernels, const uint8_t[:, :] hidden_states, int hidden_dtype,
           uint8_t[:, :] out, int out_dtype, int num_threads, int activation_format):
    """Write hidden_states @ weight.T + bias; rows of `hidden_states` and `out` are bytes, and do not overlap."""
    cdef cpp.InterruptibleCall call
    cdef cpp.KernelTable table = cpp.kernel_table_for(kernels, <cpp.ActivationFormat>activation_format)
    cdef cpp.LinearProblem problem
    cdef cpp.Status status
    problem.shape = weight.shape
    problem.weight = cpp.view_single(weight.shape, weight.data)
    problem.hidden_states.data = <uint8_t*>&hidden_states[0, 0]
    problem.hidden_states.stride = hidden_states.strides[0]
    problem.hidden_states.dtype = <cpp.DType>hidden_dtype
    problem.out.data = &out[0, 0]
    problem.out.stride = out.strides[0]
    problem.out.dtype = <cpp.DType>out_dtype
    problem.num_tokens = hidden_states.shape[0]
    with nogil:
        status = cpp.run_linear(table, problem, num_threads)
    raise_interrupt(call)
    if status == cpp.Status.kOutOfMemory:
        raise MemoryError("no memory for the workspace of a linear")


def activate(int kernels, const float[::1] gate, const float[::1] up, float[::1] out, int num_threads, *,
             int activation, float alpha, float limit, int activation_format):
    """Write the activation of sums of gate and up, before it is rounded; `gate` is None where experts have none.

    `out` may be either of the two.
    """
    cdef cpp.InterruptibleCall call
    cdef cpp.ActivationArgs args
    args.count = up.shape[0]
    if args.count == 0:
        return
    args.gate = NULL
    if gate is not None:
        args.gate = &gate[0]
    args.up = &up[0]
    args.out = &out[0]
    args.activation.kind = <cpp.ActivationKind>activation
    args.activation.alpha = alpha
    args.activation.limit = limit
    with nogil:
        cpp.run_activate(kernels, <cpp.ActivationFormat>activation_format, args, num_threads)
    raise_interrupt(call)


def mean_squares(const uint8_t[:, :] rows, int dtype, double[::1] means, int num_threads):
    """Write the mean of the squares of each row; `rows` are bytes."""
    cdef cpp.InterruptibleCall call
    cdef cpp.Rows numbers
    numbers.data = <uint8_t*>&rows[0, 0]
    numbers.stride = rows.strides[0]
    numbers.dtype = <cpp.DType>dtype
    cdef int64_t k = rows.shape[1] // (4 if numbers.dtype == cpp.DType.kFloat32 else 2)
    with nogil:
        cpp.run_mean_squares(numbers, rows.shape[0], k, &means[0], num_threads)
    raise_interrupt(call)


def sigmoid(const float[::1] x, float[::1] result):
    """Write the sigmoid of each number, computed in float64 and rounded once."""
    with nogil:
        cpp.run_sigmoid(&x[0], x.shape[0], &result[0])
