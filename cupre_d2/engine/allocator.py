"""The C library's memory, told to keep what training frees: a step asks for what the one before gave back."""

import ctypes

# malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Nothing goes back to the system, large blocks are no exception, and threads use what others have freed.
SETTINGS = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0, M_ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """For the rest of this process; on a CPU, where the system would have to clear new pages in every step.

    Returns:
        Whether the C library is one that can; glibc is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) for name, value in SETTINGS.items())
