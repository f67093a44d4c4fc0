# What a layer of a decoder does in one call: its attention; its norm and router. Included by _core.pyx.


cdef cpp.Linear linear_of(LinearStorage storage) noexcept:
    cdef cpp.Linear matrix
    matrix.shape = storage.shape
    matrix.weight = cpp.view_single(storage.shape, storage.data)
    return matrix


cdef class SelfAttention:
    """The weights of the attention of a layer, which it keeps alive."""

    cdef cpp.SelfAttention layer
    cdef vector[cpp.Linear] projections
    cdef object kept

    def __init__(self, list projections, LinearStorage output, const float[::1] input_norm, *, int64_t num_heads,
                 int64_t num_kv_heads, int64_t head_dim, double norm_epsilon,
                 const float[::1] q_norm, const float[::1] k_norm, bint norms_whole, clip,
                 const double[::1] frequencies, double rotary_factor, int64_t window, float scale,
                 const float[::1] sinks):
        """Norms of heads, `clip` and `sinks` may be None."""
        self.kept = (projections, output, input_norm, q_norm, k_norm, frequencies, sinks)
        for projection in projections:
            self.projections.push_back(linear_of(<LinearStorage?>projection))
        self.layer.hidden_size = input_norm.shape[0]
        self.layer.num_heads = num_heads
        self.layer.layout.num_kv_heads = num_kv_heads
        self.layer.layout.head_dim = head_dim
        self.layer.norm_epsilon = norm_epsilon
        self.layer.input_norm = &input_norm[0]
        self.layer.projections = self.projections.data()
        self.layer.num_projections = self.projections.size()
        self.layer.output = linear_of(output)
        self.layer.q_norm = self.layer.k_norm = NULL
        if q_norm is not None and k_norm is not None:
            self.layer.q_norm = &q_norm[0]
            self.layer.k_norm = &k_norm[0]
        self.layer.norms_whole = norms_whole
        self.layer.clips = clip is not None
        self.layer.clip = 0 if clip is None else clip
        self.layer.frequencies = &frequencies[0]
        self.layer.num_pairs = frequencies.shape[0]
        self.layer.rotary_factor = rotary_factor
        self.layer.window = window
        self.layer.scale = scale
        self.layer.sinks = NULL
        if sinks is not None:
            self.layer.sinks = &sinks[0]

    def add_to(self, float[:, ::1] residual, const int64_t[::1] positions, list sequences, int kernels,
               int num_threads, int activation_format):
        """Add what the attention of new tokens gives to `residual`, and write their keys and values.

        A sequence is (number of its new tokens, position of the first one, pages).
        """
        cdef cpp.InterruptibleCall call
        cdef cpp.SelfAttention layer = self.layer
        cdef cpp.MatrixKernels matrix_kernels
        cdef cpp.DecoderStep step
        cdef cpp.NewTokens tokens
        cdef vector[cpp.NewTokens] all_tokens
        cdef vector[uint8_t*] data
        cdef cpp.Status status
        cdef KVPage page
        cdef size_t first = 0, i
        matrix_kernels.table = cpp.kernel_table(kernels)
        matrix_kernels.preferred = cpp.kernel_table_for(kernels, <cpp.ActivationFormat>activation_format)
        step.residual = &residual[0, 0]
        step.positions = &positions[0]
        step.num_tokens = residual.shape[0]
        for count, position, pages in sequences:
            tokens.num_tokens = count
            tokens.position = position
            for page in <tuple?>pages:
                data.push_back(page.data)
            layer.layout.dtype = page.layout.dtype
            all_tokens.push_back(tokens)
        for i in range(all_tokens.size()):  # the vector of pages stays where it is from now on
            tokens = all_tokens[i]
            all_tokens[i].pages = data.data() + first
            first += (tokens.position + tokens.num_tokens + cpp.kBlockPositions - 1) // cpp.kBlockPositions
        step.sequences = all_tokens.data()
        step.num_sequences = all_tokens.size()
        with nogil:
            status = cpp.add_self_attention(matrix_kernels, cpp.attention_kernels(kernels), layer, step, num_threads)
        raise_interrupt(call)
        if status == cpp.Status.kOutOfMemory:
            raise MemoryError("no memory for the workspace of the attention of a layer")


def route_normalized(const float[:, ::1] residual, const float[::1] norm, double epsilon, LinearStorage weight,
                     uint16_t[:, ::1] rows, float[:, ::1] logits, int kernels, int num_threads):
    """Write the norms of rows, rounded to bfloat16, and the logits of a router that reads them in float32."""
    cdef cpp.InterruptibleCall call
    cdef cpp.Router router
    cdef cpp.RouterStep step
    cdef cpp.Status status
    router.hidden_size = residual.shape[1]
    router.norm_epsilon = epsilon
    router.norm = &norm[0]
    router.weight = linear_of(weight)
    step.residual = &residual[0, 0]
    step.num_tokens = residual.shape[0]
    step.rows = &rows[0, 0]
    step.logits = &logits[0, 0]
    with nogil:
        status = cpp.run_route_normalized(cpp.kernel_table(kernels), router, step, num_threads)
    raise_interrupt(call)
    if status == cpp.Status.kOutOfMemory:
        raise MemoryError("no memory for the workspace of a router")
