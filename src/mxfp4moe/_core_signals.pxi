# Signals that come during a call. Included by _core.pyx.

import os
import threading

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil
    int PyErr_CheckSignals() noexcept  # its error is raised later, by `raise_interrupt`


cdef unsigned long main_thread = threading.main_thread().ident


def note_main_thread():
    """In a child of fork, the thread that lives on is the main thread."""
    global main_thread
    main_thread = PyThread_get_thread_ident()


os.register_at_fork(after_in_child=note_main_thread)


cdef cbool handler_raised() noexcept nogil:
    """Let Python run the handlers of signals that have come, which it does on its main thread alone."""
    if PyThread_get_thread_ident() != main_thread:
        return False
    with gil:
        return PyErr_CheckSignals() < 0


cpp.InterruptibleCall.set_check(handler_raised)


cdef int raise_interrupt(const cpp.InterruptibleCall& call) except -1:
    """Go on with the error that a signal's handler raised during `call`, if one did."""
    return -1 if call.interrupted() else 0
