"""Formats of files that hold rows, one module each. A kind of source of rows (`kinds.row_files`) reads them by suffix.

base        Format, Peek
json_lines  .jsonl, .ndjson
json_array  .json: an array of objects, an object that holds one, or objects one after another
delimited   .csv, .tsv, .tab
parquet     .parquet
arrow       .arrow, as `datasets` saves
"""
