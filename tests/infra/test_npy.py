import gc
import sys
import threading
from io import BytesIO

import numpy as np
import pytest

from omniloom.infra import npy


def held(*arrays):
    sink = BytesIO()
    np.savez(sink, *arrays) if len(arrays) > 1 else np.save(sink, arrays[0])
    return BytesIO(sink.getvalue())


@pytest.mark.parametrize("parse", [npy.load, npy.load_all])
def test_files_are_opened_while_another_thread_collects_garbage_in_its_own_parse(parse):
    """CPython has one count of the parser's depth for all threads: see the module."""
    files = [held(*[np.arange(n)] * (1 if parse is npy.load else 2)) for n in (3, 4)]
    found: list = []
    asked, parsed = threading.Event(), threading.Event()

    def deep(depth: int) -> None:
        if depth:
            return deep(depth - 1)
        asked.wait(10)
        found.append(parse(files[1]))
        parsed.set()

    def while_parsing(phase: str, _) -> None:
        if phase == "start" and not asked.is_set() and sys._getframe(1).f_code.co_name == "parse":
            asked.set()
            parsed.wait(0.5)

    other = threading.Thread(target=deep, args=(40,))
    other.start()
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    gc.callbacks.append(while_parsing)
    try:
        found.append(parse(files[0]))
    finally:
        gc.callbacks.remove(while_parsing)
        gc.set_threshold(*threshold)
        asked.set()
        other.join()
    assert asked.is_set() and len(found) == 2
    first = [f if isinstance(f, np.ndarray) else f["arr_0"] for f in found]
    assert sorted(map(len, first)) == [3, 4]


def test_what_is_no_such_file_is_refused():
    with pytest.raises(ValueError):
        npy.load(BytesIO(b"no array"))
