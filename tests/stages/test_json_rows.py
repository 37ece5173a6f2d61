"""Rows of JSON are what Python's parser reads, whichever parser read them."""

from __future__ import annotations

import json

import pytest

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.formats import json_rows
from omniloom.stages.ingest.formats.json_rows import parse_row

LINES = [
    '{"text": "plain", "n": 1, "f": 1.5, "t": true, "none": null}',
    '{"n": 12345678901234567890123}',
    '{"inner": {"n": [18446744073709551616]}}',
    '{"n": -9223372036854775809, "big": 18446744073709551615}',
    '{"f": NaN, "g": Infinity, "h": 1e400}',
    '{"text": "half \\ud800 of a pair", "pair": "\\ud83d\\ude00"}',
    '{"a": 1, "a": 2}',
    ' {"text": "\\u0000", "é": "日本"}\r',
    json.dumps({"deep": [[[{"a": [[1]]}]]]}),
]
WRONG = [
    (b"[1, 2]", "expected an object, got list"),
    (b"17", "expected an object, got int"),
    (b'{"a": 1', "Expecting ',' delimiter"),
    (b'{"a": "\xff"}', "not utf-8 at byte 7"),
    (b'{"a": "\x01"}', "Invalid control character"),
    (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested too deep: more than 100 levels"),
    (b'{"a": ' + b"[" * 99_999, "nested too deep"),
]


@pytest.fixture(params=["orjson", "json"])
def parser(request, monkeypatch):
    if request.param == "json":
        monkeypatch.setattr(json_rows, "_quickly", lambda line: None)


@pytest.mark.parametrize("line", LINES)
def test_a_row_is_what_pythons_parser_reads(parser, line):
    assert repr(parse_row(line.encode())) == repr(json.loads(line))


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_line_is_told_in_the_same_words(parser, line, message):
    with pytest.raises(MediaError, match="invalid_json|invalid_utf8") as error:
        parse_row(line)
    assert message in error.value.message


def test_a_line_of_another_encoding(parser):
    assert parse_row('{"text": "Äpfel"}'.encode("latin-1"), "latin-1") == {"text": "Äpfel"}
