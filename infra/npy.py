"""NumPy's files, read from any thread.

`numpy.load` parses a file's header as Python source, and CPython 3.11 keeps one count of that parser's depth for all
threads: where one parses while another waits within its own parse (collecting garbage), the second ends with
`SystemError: AST constructor recursion depth mismatch`. So files are opened one at a time here; of a mapped file
that is the header alone.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_ONE_AT_A_TIME = threading.Lock()


def load(source: str | Path | IO[bytes], mapped: bool = False) -> np.ndarray:
    """The array of a .npy file; `mapped` is read as it is used. ValueError where it is none."""
    import numpy as np

    with _ONE_AT_A_TIME:
        return np.load(source, mmap_mode="r" if mapped else None)


def load_all(source: IO[bytes]) -> dict[str, Any]:
    """The arrays of a .npz file by their names."""
    import numpy as np

    with _ONE_AT_A_TIME, np.load(source) as held:
        return dict(held)
