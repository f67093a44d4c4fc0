# What a decoder computes beside its matrices: norms, rotary embeddings, caches, attention. Included by _core.pyx.

cimport cython


def rms_norm(const uint8_t[:, :] rows, int dtype, const float[::1] weight, double epsilon, uint8_t[:, ::1] out,
             int out_dtype, int num_threads):
    """Write the norm of each row; rows are bytes, `weight` may be None."""
    cdef cpp.InterruptibleCall call
    cdef cpp.RmsNorm norm
    norm.rows.data = <uint8_t*>&rows[0, 0]
    norm.rows.stride = rows.strides[0]
    norm.rows.dtype = <cpp.DType>dtype
    norm.out.data = &out[0, 0]
    norm.out.stride = out.strides[0]
    norm.out.dtype = <cpp.DType>out_dtype
    norm.num_rows = rows.shape[0]
    norm.k = rows.shape[1] // (4 if norm.rows.dtype == cpp.DType.kFloat32 else 2)
    norm.weight = NULL
    if weight is not None:
        norm.weight = &weight[0]
    norm.epsilon = epsilon
    with nogil:
        cpp.run_rms_norm(norm, num_threads)
    raise_interrupt(call)


def rotary(const float[:, :, ::1] x, const int64_t[::1] positions, const double[::1] frequencies, float[:, :, ::1] out,
           int num_threads, *, double factor, bint interleaved):
    """Write heads whose first pairs, one for each frequency, are turned by the angles of the positions."""
    cdef cpp.InterruptibleCall call
    cdef cpp.Rotary problem
    problem.x = &x[0, 0, 0]
    problem.out = &out[0, 0, 0]
    problem.num_tokens = x.shape[0]
    problem.num_heads = x.shape[1]
    problem.head_dim = x.shape[2]
    problem.num_pairs = frequencies.shape[0]
    problem.interleaved = interleaved
    problem.positions = &positions[0]
    problem.frequencies = &frequencies[0]
    problem.factor = factor
    with nogil:
        cpp.run_rotary(problem, num_threads)
    raise_interrupt(call)


cdef class PageMemory:
    """Zeroed memory of some pages; huge pages of the system hold it if it is large."""

    cdef uint8_t* data
    cdef int64_t size

    def __cinit__(self, int64_t size):
        self.data = cpp.map_memory(size)
        self.size = size
        if self.data == NULL:
            raise MemoryError(f"no memory for {size} bytes of a key/value cache")

    def __dealloc__(self):
        cpp.unmap_memory(self.data, self.size)


cdef class KVPage:
    """A page of a key/value cache; caches may share it, see attention/kv_page.h."""

    cdef cpp.KVPage page
    cdef cpp.KVLayout layout
    cdef PageMemory memory  # keeps alive what `data` points to
    cdef uint8_t* data

    def __reduce__(self):
        raise TypeError("pages of a key/value cache cannot be pickled")

    @property
    def nbytes(self):
        """The bytes of the page."""
        return cpp.page_bytes(self.layout)

    def claim(self, int64_t begin, int64_t end):
        """Take the positions [begin, end) of the page to be filled; False if it is not filled up to `begin` exactly."""
        return self.page.claim(begin, end)

    def copy_from(self, KVPage other):
        """Take over all numbers of another page."""
        memcpy(self.data, other.data, cpp.page_bytes(self.layout))


def new_pages(int64_t num_kv_heads, int64_t head_dim, int dtype, int64_t count):
    """Return a list of pages, side by side in memory, that no cache has filled."""
    cdef cpp.KVLayout layout
    cdef KVPage page
    cdef int64_t i
    layout.num_kv_heads = num_kv_heads
    layout.head_dim = head_dim
    layout.dtype = <cpp.DType>dtype
    cdef PageMemory memory = PageMemory(count * cpp.page_bytes(layout))
    pages = []
    for i in range(count):
        page = KVPage.__new__(KVPage)
        page.layout = layout
        page.memory = memory
        page.data = memory.data + i * cpp.page_bytes(layout)
        pages.append(page)
    return pages


def page_bytes(int64_t num_kv_heads, int64_t head_dim, int dtype):
    """Return the bytes of one page."""
    cdef cpp.KVLayout layout
    layout.num_kv_heads = num_kv_heads
    layout.head_dim = head_dim
    layout.dtype = <cpp.DType>dtype
    return cpp.page_bytes(layout)


def fill_pages(list pages, int64_t position, const float[:, :, ::1] keys, const float[:, :, ::1] values,
               int num_threads):
    """Write keys and values of consecutive positions into pages, the first of which has `position`."""
    cdef cpp.InterruptibleCall call
    cdef cpp.NewPositions tokens
    cdef cpp.KVLayout layout = (<KVPage?>pages[0]).layout
    cdef vector[uint8_t*] data
    for page in pages:
        data.push_back((<KVPage?>page).data)
    tokens.keys = &keys[0, 0, 0]
    tokens.values = &values[0, 0, 0]
    tokens.position = position
    tokens.num_tokens = keys.shape[0]
    with nogil:
        cpp.fill_pages(layout, tokens, data.data(), num_threads)
    raise_interrupt(call)


cdef class Slot:
    """A place for an object that threads exchange without locks."""

    cdef object value

    def __init__(self, value):
        self.value = value

    def get(self):
        """Return the object."""
        with cython.critical_section(self):
            return self.value

    def exchange(self, old, new):
        """Put `new` in the place of `old`; False, and nothing is changed, if another object is there."""
        with cython.critical_section(self):
            if self.value is not old:
                return False
            self.value = new
            return True


def attention(list sequences, int kernels, int64_t num_heads, const float[::1] sinks, int num_threads, *, float scale,
              int64_t window, int out_dtype):
    """Write the result of each sequence: (queries, pages, number of positions, result as bytes)."""
    cdef cpp.InterruptibleCall call
    cdef cpp.AttentionProblem problem
    cdef cpp.AttentionSequence sequence
    cdef vector[cpp.AttentionSequence] all_sequences
    cdef vector[const uint8_t*] data
    cdef const float[:, :, ::1] queries
    cdef uint8_t[:, :, ::1] out
    cdef cpp.Status status
    cdef KVPage page
    cdef size_t first = 0
    cdef size_t i
    for given, pages, length, result in sequences:
        queries, out = given, result
        sequence.queries = &queries[0, 0, 0]
        sequence.num_queries = queries.shape[0]
        sequence.length = length
        sequence.out = &out[0, 0, 0]
        for page in <tuple?>pages:
            data.push_back(page.data)
        problem.layout = page.layout
        all_sequences.push_back(sequence)
    for i in range(all_sequences.size()):  # the vector of pages stays where it is from now on
        all_sequences[i].pages = data.data() + first
        first += (all_sequences[i].length + cpp.kBlockPositions - 1) // cpp.kBlockPositions
    problem.sequences = all_sequences.data()
    problem.num_sequences = all_sequences.size()
    problem.num_heads = num_heads
    problem.window = window
    problem.scale = scale
    problem.sinks = NULL
    if sinks is not None:
        problem.sinks = &sinks[0]
    problem.out_dtype = <cpp.DType>out_dtype
    with nogil:
        status = cpp.run_attention(cpp.attention_kernels(kernels), problem, num_threads)
    raise_interrupt(call)
    if status == cpp.Status.kOutOfMemory:
        raise MemoryError("no memory for the workspace of attention")
