"""What this process frees, and when the kernel gets it back. Of other C libraries than glibc
nothing is asked.

A training step needs and frees gigabytes. glibc gives them back to the kernel each time, and gets
them again page by page, which takes a tenth of the step. Kept for good they fall to pieces,
because no two steps have the same sizes: a process that needs 6 GB had 14 GB after 160 steps. So
they are kept for some steps, and given back then.
"""

from __future__ import annotations

import contextlib
import ctypes

# Of glibc's malloc.h: blocks that are mapped one by one; free memory that is kept at most.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def keep_freed_memory() -> None:
    """From now on, until it is given back."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back() -> None:
    """Every whole page that is free now."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
