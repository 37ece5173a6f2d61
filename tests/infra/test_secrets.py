"""Secrets in text and in nested literals. The URIs' parts are told apart by urllib and SQLAlchemy, not by us."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from omniloom.infra import secrets
from omniloom.infra.figures import finite

USER, PASSWORD = "planteduser", "plantedpass"


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch):
    monkeypatch.setattr(secrets, "_hidden", set())


@pytest.mark.parametrize(
    "uri",
    [
        "https://{u}:{p}@host:8443/path/file.json?a=1",
        "s3://{u}:{p}@bucket/key",
        "mysql+pymysql://{u}:{p}@host/db",
        "postgresql+psycopg2://{u}:{p}@host:5432/db?sslmode=require",
        "redis://:{p}@host:6379/0",
        "https://{p}@host/x.git",
        "ftp://{u}@host/x",
        "simplecache::https://{u}:{p}@host/x::s3://{u}:{p}@bucket",
        "hdfs://{u}:{p}@host/~/x",
        "mysql://{u}:{p}/{p}@host/db",
        "mysql://{u}:{p}@{p}@host/db",
        "mysql://{u}:{p}#{p}?{p}@host/db",
        "http://{u}:{p}@[::1]:80/x",
        "sftp://{u}:12{p}@host",
    ],
)
def test_user_info_of_a_uri(uri):
    shown = secrets.redact(f"before '{uri.format(u=USER, p=PASSWORD)}', after")
    assert USER not in shown and PASSWORD not in shown
    assert shown.startswith("before '") and shown.endswith("', after")
    assert "host" in shown or "bucket" in shown or "[::1]" in shown
    assert secrets.redact(shown) == shown


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4&X-Amz-Credential={p}%2F20&X-Amz-Date=2026&X-Amz-Signature={p}&X-Amz-Security-Token={p}%3D",
        "AWSAccessKeyId={p}&Signature={p}&Expires=1",
        "sv=2024&sr=b&sig={p}&se=2027",
        "GoogleAccessId={p}&Signature={p}",
        "X-Goog-Signature={p}&X-Goog-Credential={p}",
        "Policy={p}&Signature={p}&Key-Pair-Id={p}",
        "token={p}",
        "OSSAccessKeyId={p}&Signature={p}",
        "access_token={p}",
        "api_key={p}&x=1",
        "apikey={p}",
        "auth={p}",
        "jwt={p}",
        "q-signature={p}&q-ak={p}",
        "password={p}&user={p}",
        "client_secret={p}",
        "sessionid={p}",
        "x-oss-security-token={p}",
        "odbc_connect=DRIVER%3Da%3BUID%3Du%3BPWD%3D{p}",
        "code={p}",
        "SharedAccessSignature={p}",
        "hmac={p}",
    ],
)
def test_signatures_of_a_uri(query):
    for text in (
        f"https://host/a.bin?{query}",
        f"url: /a.bin?{query} (Caused by ...)",
        f'["https://h/x?y=1&{query}"]',
        f"<a href='https://h/x?y=1&amp;{query.replace('&', '&amp;')}'>",
    ):
        shown = secrets.redact(text.format(p=PASSWORD))
        assert PASSWORD not in shown and shown.count("=") == text.count("=")
    assert secrets.redact_uris("https://h/x?page=2&size=3") == "https://h/x?page=2&size=3"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b",
        "s3://bucket/photos@2x/a.png",
        "a user@example.org wrote",
        "images: 12/12 files, 3@4",
        "data:image/png;base64,AAAA",
        "https://host/x?v=1#top",
        "max_tokens=5; lr=3e-4",
        "basic information of authors",
        "git@github.com:owner/name",
        "<a href='http://h'>me@x</a>",
        '{"a":"http://host","b":"x@y"}',
    ],
)
def test_what_is_no_secret_stays(text):
    assert secrets.redact(text) == text


def test_headers():
    for text in (
        f"Authorization: Bearer {PASSWORD}.x-y",
        f"{{'Authorization': 'Basic {PASSWORD}'}}",
        f"got bearer {PASSWORD}abcdef",
        f'"authorization": "token {PASSWORD}"',
    ):
        assert PASSWORD not in secrets.redact(text)


def test_nested_literals():
    value = {
        "cluster": {"env": {"KEY": PASSWORD, "PIN": 482913, "none": None}, "address": "h:1"},
        "cluster.env.KEY": PASSWORD,
        "sources": [{"uri": f"s3://{USER}:{PASSWORD}@b/x"}, (1, True)],
        "env_vars": [PASSWORD],
        "db": {"password": PASSWORD, "AWS_SECRET_ACCESS_KEY": PASSWORD},
        f"https://h/?sig={PASSWORD}": Path(f"/x/?sig={PASSWORD}"),
        "code": "abc",
        "lr": 0.1,
    }
    shown = secrets.redact(value)
    assert PASSWORD not in repr(shown) and USER not in repr(shown) and "482913" not in repr(shown)
    assert shown["cluster"] == {"env": {"KEY": "***", "PIN": "***", "none": None}, "address": "h:1"}
    assert shown["sources"] == [{"uri": "s3://***@b/x"}, [1, True]] and shown["code"] == "abc" and shown["lr"] == 0.1
    assert value["cluster"]["env"]["KEY"] == PASSWORD, "the value itself is untouched"
    value["itself"] = value
    assert secrets.redact(value)["itself"] == "..."


@pytest.mark.parametrize(
    "override, shown",
    [
        (f"cluster.env={{A: {PASSWORD}}}", "cluster.env=***"),
        (f"cluster.env.A={PASSWORD}", "cluster.env.A=***"),
        (f"cluster={{env: {{A: {PASSWORD}}}}}", "cluster=***"),
        ("seed=1", "seed=1"),
        ("nonsense", "nonsense"),
        (f"tracking.uri=mysql://u:{PASSWORD}@h/d", "tracking.uri=mysql://***@h/d"),
    ],
)
def test_overrides(override, shown):
    assert secrets.redact_override(override) == shown


def test_hidden_values(tmp_path):
    odd = "line\nend \"quoted\" 'it' /x"
    secrets.hide([PASSWORD, odd, "1", "false", str(tmp_path)])
    for text in (PASSWORD, repr(odd), f"https://h/{PASSWORD}/x", str({"a": odd})):
        assert "quoted" not in secrets.redact(text) and PASSWORD not in secrets.redact(text)
    assert secrets.redact(f"1 false {tmp_path}") == f"1 false {tmp_path}"


def test_parts_of_an_address_that_a_client_quotes_by_themselves():
    secrets.hide_credentials(
        {"a": [f"s3://{USER}:{PASSWORD}%2F%40x@bucket/k", {"b": f"https://h/?sig={PASSWORD}2%3D"}], "c": 3}
    )
    for text in (
        f'Invalid bucket name "{USER}:{PASSWORD}%2F%40x@bucket"',
        f"no login with {PASSWORD}/@x",
        f"signature {PASSWORD}2= has expired",
    ):
        assert PASSWORD not in secrets.redact(text)
    assert secrets.redact_uris(f"by {PASSWORD}/@x") == f"by {PASSWORD}/@x", "a fingerprint depends on its text alone"


def test_loggers_and_tracebacks(caplog):
    log = secrets.logger("infra.of_this_test")
    assert secrets.logger("infra.of_this_test") is log and len(log.filters) == 1
    try:
        raise ValueError(f"http://{USER}:{PASSWORD}@h failed")
    except ValueError as error:
        log.exception("at %s", f"http://h/?token={PASSWORD}")
        printed = secrets.traceback(error)
    formatted = logging.Formatter().format(caplog.records[-1])
    assert "ValueError" in formatted and "ValueError" in printed and "test_secrets.py" in printed
    assert PASSWORD not in formatted + caplog.text + printed and USER not in formatted + printed


def test_links_keep_leading_somewhere():
    assert secrets.without_user_info("https://u:p@host:5000/x") == "https://host:5000/x"


def test_figures_that_are_none():
    value = {
        "a": math.nan,
        "b": [1, 2.5, -math.inf, (np.float32("nan"), np.float32(0.5))],
        "c": {"d": "x", "e": True},
        "n": None,
        "big": 10**400,
        "i": np.int64(3),
    }
    assert finite(value) == {
        "a": None,
        "b": [1, 2.5, None, [None, 0.5]],
        "c": {"d": "x", "e": True},
        "n": None,
        "big": 10**400,
        "i": 3,
    }
