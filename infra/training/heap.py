"""The heap of training processes on CPUs: blocks that a step frees stay with the process, for the next step.

glibc gives large blocks back to the kernel as soon as they are free, and the heaps of threads, one of which Ray Train
runs a rank's function in; a step frees all of its activations. The next one gets the same pages again, each by a page
fault and filled with zeros. What stays is what the step with the most took, as torch's allocator keeps it of a GPU.
"""

from __future__ import annotations

# Of a process from its start on, for glibc to read (mallopt(3)); other C libraries take no notice.
KEEPS_FREED = {
    "MALLOC_ARENA_MAX": "1",  # one heap for all threads
    "MALLOC_MMAP_MAX_": "0",  # large blocks lie in it too
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),  # it grows by so much
}
