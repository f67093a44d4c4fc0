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
    cdef int64_t begin

    def __cinit__(self, int descriptor, int64_t begin, int64_t size):
        """Map `size` bytes, at least 1, from `begin` on, a multiple of the page size."""
        cdef int error = cpp.map_file(descriptor, begin, size, &self.data)
        if error:
            raise OSError(error, "cannot be mapped")
        self.size = size
        self.begin = begin

    cdef int check_pages(self, int64_t begin, int64_t end) except -1:
        if not 0 <= begin <= end <= self.size:
            raise ValueError(f"begin, end: expected a part of {self.size} bytes, got {begin} to {end}")
        return 0

    def expect_random_reads(self):
        """Let reads of a page bring no others with them; whether the system could be told."""
        return cpp.expect_random_reads(self.data, self.size)

    def request_pages(self, int64_t begin, int64_t end):
        """Begin to read the pages of these bytes of the mapping, and wait for none."""
        cdef bint done
        self.check_pages(begin, end)
        with nogil:
            done = cpp.request_pages(self.data + begin, end - begin)
        return done

    def drop_pages(self, int descriptor, int64_t begin, int64_t end):
        """Give back the memory of pages, also in the cache of the file, of which `descriptor` is one."""
        cdef bint done
        self.check_pages(begin, end)
        with nogil:
            done = cpp.drop_pages(descriptor, self.begin + begin, self.data + begin, end - begin)
        return done

    def __dealloc__(self):
        if self.data != NULL:
            cpp.unmap_file(self.data, self.size)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, True, flags)
