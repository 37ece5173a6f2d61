"""Secrets kept out of whatever is logged, printed or stored.

In: text, or literals nested in mappings and lists. Out: the same with every secret replaced by `***`. Secrets are the
user info of a URI (`scheme://user:password@host`), signatures and tokens in a query (`?X-Amz-Signature=...`), an
Authorization header, values of environment variables (`cluster.env`), and values that `hide` was told of.

Every way out of the program passes here: MLflow, manifests and fingerprints, run records, job metadata, tables,
messages, warnings of our loggers, tracebacks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from traceback import format_exception
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
# A user and a password may hold what a URI would have escaped (`/`, `@`): databases' clients take that. A port
# (`host:5000/a@b`) is no password.
_USER_INFO = re.compile(
    r"""(?<=://)(?:[^\s/?#@:"<>]+:(?!\d+(?:[/?\#]|$))[^\s@"<>]*@(?:[^\s/?#@"<>]*@)*"""
    r"""|[^\s/?#"<>]+@)"""
)
_PARAMETER = re.compile(r"""(?<=[?&#;])([\w.%\[\]-]{1,100})=([^&\s#"'<>]+)""")
_HEADER = re.compile(
    r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|digest|token)\s+)?"
    r"|bearer\s+(?=\S{12}))[^\s'\",;]+"
)
# Names of query parameters, in small letters without punctuation: of AWS, Google, Azure, Alibaba, Tencent, CDNs,
# and of databases' drivers.
_NAMES = {
    "sig",
    "sign",
    "key",
    "auth",
    "pwd",
    "pass",
    "jwt",
    "hmac",
    "policy",
    "code",
    "hdnea",
    "hdnts",
    "sas",
    "ak",
    "qak",
    "user",
    "username",
    "login",
    "uid",
}
_PART_OF_NAME = re.compile(
    r"signature|token(?!s)|secret|passw|passphrase|credential|access(?:key|id)|apikey|authkey|"
    r"keypair|privatekey|keyid|authoriz|session|odbcconnect"
)
_KEYS = re.compile(r"passw|passphrase|secret|credential|access_?key|api_?key|private_?key|authoriz", re.IGNORECASE)
_ENVIRONMENTS = {"env", "env_vars", "environment"}
_SHORTEST = 6  # shorter values of variables (`1`, `false`) are words that any text holds

_hidden: set[str] = set()


def hide(values: Iterable[str]) -> None:
    """Keep these values out of every later text of this process. Short ones, and paths that exist, are no secrets."""
    for value in values:
        if len(value) >= _SHORTEST and not os.path.exists(value):
            _hidden.update((value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")))


def hide_credentials(value: Any) -> None:
    """`hide` what the URIs in a text, or in nested literals, hold: clients quote parts of them in their errors."""
    if isinstance(value, str):
        for match in _USER_INFO.finditer(value):
            user_info = match[0][:-1]
            hide(known for part in (user_info, user_info.partition(":")[2]) for known in (part, unquote(part)))
        hide(unquote(match[2]) for match in _PARAMETER.finditer(value) if _parameter(match) != match[0])
    elif isinstance(value, Mapping):
        hide_credentials(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            hide_credentials(item)


def redact(value: Any) -> Any:
    """`value` without secrets. Mappings and lists are copied; what is neither they nor text stays as it is."""
    return _redacted(value, ())


def _redacted(value: Any, around: tuple[int, ...]) -> Any:
    if isinstance(value, str):
        text = _HEADER.sub(rf"\1{MASK}", redact_uris(value))
        for secret in sorted(_hidden, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text
    if isinstance(value, PurePath):
        return redact(str(value))
    if not isinstance(value, Mapping | list | tuple):
        return value
    if id(value) in around:
        return "..."  # within itself
    around = (*around, id(value))
    if isinstance(value, Mapping):
        return {
            redact(key) if isinstance(key, str) else key: _masked(item)
            if names_secret(key)
            else _redacted(item, around)
            for key, item in value.items()
        }
    return [_redacted(item, around) for item in value]


def redact_uris(text: str) -> str:
    """Text without the user info and the signatures of the URIs in it; the same text always gives the same."""
    return _PARAMETER.sub(_parameter, _USER_INFO.sub(f"{MASK}@", text)) if "://" in text or "=" in text else text


def redact_override(override: str) -> str:
    """A `key=value` override; nothing of a value that sets environment variables is left."""
    key, equals, _ = override.partition("=")
    return f"{key}={MASK}" if equals and (names_secret(key) or key == "cluster") else redact(override)


def without_user_info(uri: str) -> str:
    """A URI that still leads to its place, for a link: user and password left out."""
    return _USER_INFO.sub("", uri)


def names_secret(key: Any) -> bool:
    """Whether what a mapping has under this key, or a config under this dotted path, is nobody's to see."""
    return isinstance(key, str) and (not _ENVIRONMENTS.isdisjoint(key.split(".")) or bool(_KEYS.search(key)))


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    return None if value is None else MASK


def _parameter(match: re.Match) -> str:
    name = re.sub(r"[^a-z0-9]", "", match[1].lower())
    return f"{match[1]}={MASK}" if name in _NAMES or _PART_OF_NAME.search(name) else match[0]


class _Redacting(logging.Filter):
    """Messages and tracebacks of a logger or a handler, redacted."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = traceback(record.exc_info[1])
            record.exc_info = None
        return True


def logger(name: str) -> logging.Logger:
    """The logger of that name, which keeps secrets to itself."""
    found = logging.getLogger(name)
    guard(found)
    return found


def guard(target: logging.Filterer) -> None:
    """Make a logger or a handler redact what passes through it."""
    if not any(isinstance(known, _Redacting) for known in target.filters):
        target.addFilter(_Redacting())


def traceback(error: BaseException | None) -> str:
    """A traceback without secrets."""
    return redact("".join(format_exception(error)).rstrip())


def show_exception(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A `sys.excepthook` that keeps secrets."""
    print(traceback(error), file=sys.stderr)
