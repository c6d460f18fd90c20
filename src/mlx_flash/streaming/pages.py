"""What the system is told about the pages of slots: huge ones, and those that are not needed."""

import ctypes
import sys

_PAGE_BYTES, _HUGE_BYTES = 4096, 2 * 1024 * 1024  # where pages are larger, asking does no harm
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14  # of Linux


def use_huge_pages(address: int, nbytes: int) -> None:
    """Have memory whose bytes are all zero come again in huge pages, when it is next touched.

    It must be the process's own (anonymous and private). Does nothing where the system cannot.
    """
    if _advise(address, nbytes, _MADV_HUGEPAGE, _HUGE_BYTES):
        _advise(address, nbytes, _MADV_DONTNEED, _HUGE_BYTES)  # to turn used ones huge is slower


def give_pages_back(address: int, nbytes: int) -> bool:
    """Give the system the whole pages in memory that is not needed; return whether it took them.

    They read as zeros when they are touched again. The memory must be the process's own.
    """
    return _advise(address, nbytes, _MADV_DONTNEED, _PAGE_BYTES)


def _advise(address: int, nbytes: int, advice: int, page_bytes: int) -> bool:
    """Give advice about the whole pages in a range; return whether it was taken."""
    start = -(-address // page_bytes) * page_bytes
    length = (address + nbytes) // page_bytes * page_bytes - start
    if sys.platform != "linux":
        return False
    if length <= 0:
        return True
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return bool(madvise(start, length, advice) == 0)
