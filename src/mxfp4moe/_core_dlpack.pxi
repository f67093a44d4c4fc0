# Memory that other libraries hand over in capsules of the DLPack protocol. Included by _core.pyx.

# The structs of the protocol. They are an ABI: those of version 0, and of every version 1.x.

cdef struct DLPackDevice:
    int32_t type
    int32_t id

cdef struct DLPackType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct DLPackTensor:
    void* data
    DLPackDevice device
    int32_t ndim
    DLPackType type
    int64_t* shape
    int64_t* strides
    uint64_t byte_offset

cdef struct DLPackManaged:
    DLPackTensor tensor
    void* context
    void (*deleter)(DLPackManaged*) noexcept

cdef struct DLPackVersioned:
    uint32_t major
    uint32_t minor
    void* context
    void (*deleter)(DLPackVersioned*) noexcept
    uint64_t flags
    DLPackTensor tensor

cdef enum:
    DLPACK_READ_ONLY = 1
    DLPACK_COPIED = 2
    DLPACK_PADDED = 4
    DLPACK_MOST_AXES = 64  # as NumPy has


cdef class DLPackMemory:
    """What a DLPack capsule holds. `export` makes it a buffer of unsigned integers as wide as its elements.

    The capsule is used up: the memory is given back when nobody refers to this object any more, refused or not.
    """

    cdef DLPackManaged* managed
    cdef DLPackVersioned* versioned
    cdef DLPackTensor* tensor
    cdef bint writeable
    cdef char* start
    cdef Py_ssize_t itemsize, size
    cdef Py_ssize_t shape[DLPACK_MOST_AXES]
    cdef Py_ssize_t strides[DLPACK_MOST_AXES]

    def __cinit__(self, capsule):
        if PyCapsule_IsValid(capsule, "dltensor_versioned"):
            self.versioned = <DLPackVersioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned")
            PyCapsule_SetName(capsule, "used_dltensor_versioned")
            if self.versioned.major != 1:
                raise ValueError(f"version {self.versioned.major} of DLPack, of which 0 and 1 are known")
            self.tensor = &self.versioned.tensor
            # What is written to a copy would be lost.
            self.writeable = not self.versioned.flags & (DLPACK_READ_ONLY | DLPACK_COPIED)
        elif PyCapsule_IsValid(capsule, "dltensor"):
            self.managed = <DLPackManaged*>PyCapsule_GetPointer(capsule, "dltensor")
            PyCapsule_SetName(capsule, "used_dltensor")
            self.tensor = &self.managed.tensor
            # Version 0 cannot say whether the memory may be written.
        else:
            raise TypeError(f"an object of type {type(capsule).__name__} instead of a new DLPack capsule")

    def __dealloc__(self):
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)

    @property
    def device(self):
        """Type and number of the device that the memory is on."""
        return self.tensor.device.type, self.tensor.device.id

    @property
    def type(self):
        """Type code, bits and lanes of an element, and whether one that is smaller than a byte takes a whole one."""
        cdef DLPackType t = self.tensor.type
        padded = self.versioned != NULL and t.bits % 8 and self.versioned.flags & DLPACK_PADDED
        return t.code, t.bits, t.lanes, bool(padded)

    def export(self, Py_ssize_t itemsize):
        """Check shape, strides and pointer; from now on this object is a buffer of elements of `itemsize` bytes."""
        self.measure(INTPTR_MAX // 2 // itemsize, itemsize)
        if self.size > 0:
            self.place(INTPTR_MAX // 2 // itemsize, itemsize)
        else:
            self.start = <char*>self.shape  # never read
        self.itemsize = itemsize

    cdef int measure(self, int64_t limit, Py_ssize_t itemsize) except -1:
        """Take over the shape, of at most `limit` elements, with the strides of an array in C order."""
        cdef DLPackTensor* t = self.tensor
        cdef int64_t product = 1, n
        cdef int i
        if t.ndim < 0 or t.ndim > DLPACK_MOST_AXES or (t.ndim > 0 and t.shape == NULL):
            raise ValueError(f"a shape of {t.ndim} axes" if t.shape != NULL else "no shape")
        self.size = 1
        for i in range(t.ndim - 1, -1, -1):
            n = t.shape[i]
            if n < 0 or product > limit // max(n, 1):
                raise ValueError(f"an axis of size {n}")
            self.shape[i] = n
            self.strides[i] = product * itemsize
            self.size *= n
            product *= max(n, 1)
        return 0

    cdef int place(self, int64_t limit, Py_ssize_t itemsize) except -1:
        """Take over strides and pointer; the elements are within `limit` of the first."""
        cdef DLPackTensor* t = self.tensor
        cdef int64_t after = 0, before = 0, reach, n, stride
        cdef uintptr_t start = <uintptr_t>t.data
        cdef int i
        for i in range(t.ndim if t.strides != NULL else 0):
            n, stride = t.shape[i], t.strides[i]
            if n == 1:
                continue  # This stride is never used, and may be anything.
            if stride < -limit // n or stride > limit // n:
                raise ValueError(f"a stride of {stride} elements")
            reach = stride * (n - 1)
            after += max(reach, 0)
            before += max(-reach, 0)
            if after > limit or before > limit:
                raise ValueError(f"a stride of {stride} elements")
            self.strides[i] = stride * itemsize
        if t.data == NULL:
            raise ValueError("a null pointer")
        if t.byte_offset > UINTPTR_MAX - start:
            raise ValueError(f"an offset of {t.byte_offset} bytes")
        start += t.byte_offset
        if <uintptr_t>(before * itemsize) > start or <uintptr_t>((after + 1) * itemsize) > UINTPTR_MAX - start:
            raise ValueError("elements beyond the ends of memory")
        self.start = <char*>start
        return 0

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.itemsize == 0 or flags & PyBUF_STRIDES != PyBUF_STRIDES:
            raise BufferError("the memory has strides, and is a buffer after `export`")
        if flags & PyBUF_WRITABLE and not self.writeable:
            raise BufferError("the memory must not be written")
        view.obj = self
        view.buf = self.start
        view.len = self.size * self.itemsize
        view.itemsize = self.itemsize
        view.readonly = not self.writeable
        view.ndim = self.tensor.ndim
        view.format = unsigned_format(self.itemsize)
        view.shape = self.shape
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL


cdef char* unsigned_format(Py_ssize_t itemsize) noexcept:
    """The character by which buffers call unsigned integers of so many bytes."""
    if itemsize == 1:
        return "B"
    if itemsize == 2:
        return "H"
    return "I" if itemsize == 4 else "Q"
