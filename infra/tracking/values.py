"""What may be logged, in a form that MLflow stores. In: any value of a caller. Out: names, texts, numbers, PNG bytes.

What has no such form is made into the nearest that has: nothing here raises but `picture`, for what is no picture.
Secrets are left out.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

from omniloom.infra.secrets import redact

_LARGEST = 2**63 - 1  # a step in MLflow's databases


def name(key: Any) -> str:
    """A name that MLflow takes: letters, digits and `_-. /`, and no path that leads elsewhere."""
    clean = re.sub(r"[^\w\-. /]", "_", text(key), flags=re.ASCII)
    parts = ["_" if part == ".." else part for part in clean.split("/") if part not in ("", ".")]
    joined = "/".join(parts) or "_"
    return f"_{joined[1:]}" if joined.startswith("..") else joined


def inside(path: Any) -> str:
    """A path below the run's folder: what would lead out of it is left out."""
    return "/".join(part for part in text(path).split("/") if part not in ("", ".", ".."))


def text(value: Any) -> str:
    """Any value as text that every database stores, without secrets; mappings and lists as JSON."""
    if not isinstance(value, str):
        value = redact(value)
        try:
            value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        except Exception:  # keys that JSON has not, a list within itself, a `__str__` that raises
            value = _described(value)
    return redact(value.encode("utf-8", "replace").decode().replace("\0", "\ufffd"))


def cut(value: Any, limit: int) -> str:
    """`text` of at most `limit` characters; one that is longer says so at its end."""
    whole = text(value)
    if len(whole) <= limit:
        return whole
    note = f"... ({len(whole)} characters)"
    return whole[: limit - len(note)] + note


def number(value: Any) -> float:
    """A float, NaN and infinity among them; TypeError or ValueError where the value is no single number."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise
    except Exception as error:  # a tensor of several elements raises a class of its own
        raise TypeError(str(error)) from error


def step(value: Any) -> int:
    """A step that a database stores: whole, within 64 bits; 0 for what is no number."""
    try:
        return max(-_LARGEST, min(_LARGEST, int(value)))
    except OverflowError:
        return _LARGEST if value > 0 else -_LARGEST
    except Exception:
        return 0


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested mappings by their dotted names."""
    pairs: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            pairs += flat(item, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", item))
    return pairs


def picture(image: Any) -> bytes:
    """PNG bytes of an image: encoded bytes as they are; a PIL image; an array or tensor of shape (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4): uint8, bool, other integers cut to 0..255, or floats, of 0..1 where none is above 1 and of
    0..255 else (NaN is black)."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(_bytes_of(image))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _bytes_of(image: Any):
    import numpy as np

    if (torch := sys.modules.get("torch")) is not None and isinstance(image, torch.Tensor):
        image = image.detach().cpu().float().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        array = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        array = np.rint(array * (255 if array.size and array.max() <= 1 else 1))
    return array if array.dtype == np.uint8 else array.clip(0, 255).astype(np.uint8)


def _described(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"
