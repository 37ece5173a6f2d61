"""Arrow files on this machine's disk, memory-mapped. In: a file. Out: its table, zero-copy, batch by batch as it lies
there. Errors: InputError naming the file where it is none, or is cut.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from omniloom.infra.errors import InputError


def map_table(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot be read as an Arrow file ({file.stat().st_size if file.exists() else 'no'} bytes): "
            f"{error}; `omniloom verify CONFIG` tells which stage to make again",
            file=str(file),
        ) from None
