"""Parquet files, read whole."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.stages.data.arrow import read_parquet


def test_columns_are_given_by_the_schema_that_is_asked_for(tmp_path):
    """As `pyarrow.parquet.read_table` gives them."""
    file = tmp_path / "a.parquet"
    table = pa.table({"b": pa.array([1, None, 3], pa.int32()), "left": [0, 0, 0], "a": ["x", "y", None]})
    pq.write_table(table, file)
    asked = pa.schema([("a", pa.string()), ("later", pa.list_(pa.string())), ("b", pa.int64())])
    found = read_parquet(str(file), asked)
    assert found.schema == asked
    assert found.to_pylist() == pq.read_table(file, schema=asked).to_pylist()
    assert read_parquet(str(file)).equals(table) and read_parquet(f"file://{file}", asked).equals(found)


def test_of_no_rows(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert len(read_parquet(str(tmp_path / "a.parquet"), pa.schema([("a", pa.string())]))) == 0
