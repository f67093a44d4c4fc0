# Files; included by _core.pyx.

def crc32(const uint8_t[::1] data, uint32_t crc, int num_threads):
    """The CRC-32 of `data`, continued from `crc`."""
    cdef cpp.InterruptibleCall call
    if data.shape[0] == 0:
        return crc
    with nogil:
        crc = cpp.crc32(crc, &data[0], data.shape[0], num_threads)
    raise_interrupt(call)
    return crc


def exchange_names(bytes a, bytes b):
    """Let two names of the file system change places at once; whether the system could."""
    cdef const char* first = a
    cdef const char* second = b
    cdef bint done
    with nogil:
        done = cpp.exchange_names(first, second)
    return done


cdef class FileMapping:
    """Bytes of an open file, mapped and exported read-only; the descriptor may be closed afterwards."""

    cdef uint8_t* data
    cdef int64_t size

    def __cinit__(self, int descriptor, int64_t begin, int64_t size):
        """Map `size` bytes, at least 1, from `begin` on, a multiple of the page size."""
        cdef int error = cpp.map_file(descriptor, begin, size, &self.data)
        if error:
            raise OSError(error, "cannot be mapped")
        self.size = size

    def __dealloc__(self):
        if self.data != NULL:
            cpp.unmap_file(self.data, self.size)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, True, flags)
