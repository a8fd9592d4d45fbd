"""Memory of a process: how to keep it, and how much there was."""

import ctypes
import os
import sys

# The two parameters of glibc's mallopt(3) that say when freed memory goes back to the system.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks, for the whole process.

    A step allocates and frees the same large blocks again and again. Getting them from the system
    and zeroing them each time costs half of a step on a CPU. Elsewhere than on Linux this does
    nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_gib() -> float:
    """Return the most memory that this process has held, in GiB; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return float("nan")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return most / unit
