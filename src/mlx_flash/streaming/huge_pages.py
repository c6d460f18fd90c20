"""Huge pages for slots: direct reads and kernels then handle one page where there were 512."""

import ctypes
import sys

_HUGE_BYTES = 2 * 1024 * 1024  # where pages are larger than that, asking does no harm
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14  # of Linux


def use_huge_pages(address: int, nbytes: int) -> None:
    """Have memory whose bytes are all zero come again in huge pages, when it is next touched.

    It must be the process's own (anonymous and private). Does nothing where the system cannot.
    """
    start = -(-address // _HUGE_BYTES) * _HUGE_BYTES
    length = (address + nbytes) // _HUGE_BYTES * _HUGE_BYTES - start
    if sys.platform != "linux" or length <= 0:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(start, length, _MADV_HUGEPAGE) == 0:  # to turn used pages into huge ones is slower
        madvise(start, length, _MADV_DONTNEED)
