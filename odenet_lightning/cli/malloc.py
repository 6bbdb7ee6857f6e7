"""malloc: have the C library keep freed memory instead of returning it to the system."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Have glibc keep the memory that is freed, for the next step to use.

    By default it hands large blocks back to the system, which gives them out again page by page, cleared: a fifth of
    `fast.yaml`'s time on the CPU. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nor is the end of the heap given back
