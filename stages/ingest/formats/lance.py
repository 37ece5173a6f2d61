"""Lance: a dataset is a folder of columns, versions and deletions. Rows are those of its latest version."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError, one_line
from omniloom.stages.ingest.formats.base import Files, Format, Peek, Row, Wanted
from omniloom.stages.ingest.formats.parquet import batch_rows, class_names, schema_names
from omniloom.stages.ingest.rejects import Reject

_BATCH_ROWS = 64


class Lance(Format):
    suffixes = (".lance",)

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """The rows of the dataset, or of its fragments "from" (included) to "to" (not included), the first of which has
        the number "part"."""
        dataset = opened(files, item["path"])
        columns, classes = wanted(dataset.schema.names), class_names(dataset.schema)
        fragments = dataset.get_fragments()[item.get("from", 0) : item.get("to")]
        number = item.get("part", 1)
        for fragment in fragments:
            first, count = number, fragment.count_rows()
            try:
                for batch in fragment.to_batches(columns=columns, batch_size=_BATCH_ROWS):
                    yield from batch_rows(batch, number, classes)
                    number += batch.num_rows
            except Exception as error:
                yield number, Reject("invalid_table", f"rows {number} to {first + count - 1}: {one_line(error)}")
            number = first + count

    def peek(self, files: Files, path: str) -> Peek:
        return Peek(schema_names(opened(files, path).schema), True)

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """By fragments."""
        if item["size"] <= size:
            yield item
            return
        fragments = opened(files, item["path"]).get_fragments()
        rows = [fragment.count_rows() for fragment in fragments]
        each = item["size"] / max(1, sum(rows))
        start, held, part = 0, 0, 1
        for at, number in enumerate(rows, 1):
            held += number
            if held * each >= size or at == len(rows):
                piece = {"from": start, "to": at, "size": int(held * each), "part": part, "rows": held}
                yield {**item, **piece}
                start, part, held = at, part + held, 0


def opened(files: Files, path: str) -> Any:
    """The dataset at a path below the root, or the root itself of that name; InputError without the library, MediaError
    where it cannot be read."""
    try:
        import lance
    except ImportError:
        raise InputError("reading Lance takes a package that is not installed: pip install 'omniloom[lance]'") from None
    root = files.root
    place = root.uri(path)
    if posixpath.basename(root.path) == path and not root.fs.exists(place):
        place = root.path
    try:
        return lance.dataset(root.fs.unstrip_protocol(place))
    except Exception as error:  # the library's own, for what is missing, damaged or out of reach
        raise MediaError("invalid_table", f"no Lance dataset: {one_line(error)}") from None
