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
