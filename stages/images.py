"""Images: encoded bytes to RGB arrays and back.

In: the bytes of a file and `Limits`. Out: uint8 (H, W, 3), upright, transparency on white, 16 bits scaled; of
an animation the first frame. A file that cannot be used raises `MediaError`; no other exception leaves.
"""
from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from stages.identity import picture_identity, picture_look
from stages.limits import (
    DECODE_ERRORS,
    DEFAULT_LIMITS,
    MARK,
    Limits,
    MediaError,
    check_array,
    check_bytes,
    one_line,
    parse_mark,
)

# Formats that Pillow decodes by itself; EPS and the like would start other programs.
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "JPEG2000",
                 "AVIF")
Image.init()  # registers every plugin, so that formats can be named
_FORMATS = tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


@dataclass(frozen=True)
class ImageInfo:
    """`format` is Pillow's name in lower case; `mark` what the mark says, or None for a file without one."""

    width: int
    height: int
    format: str
    mark: Any = None
    identity: str = ""  # of the pixels, as `stages.identity` has it; its look
    look: bytes = b""


def decode_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """The image as uint8 (H, W, 3): EXIF orientation applied, transparency on white, 16 bits scaled, first
    frame.
    """
    return _decode_image(data, limits)[0]


def probe_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> ImageInfo:
    """What the image is, found by decoding it whole: a truncated one raises."""
    pixels, info = _decode_image(data, limits)
    return replace(info, identity=picture_identity(pixels), look=picture_look(pixels))


def _decode_image(data: bytes, limits: Limits) -> tuple[np.ndarray, ImageInfo]:
    check_bytes(data, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd EXIF; the limits decide here
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            raise MediaError("not_an_image", "no known image format") from None
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", str(error)) from None
        except DECODE_ERRORS as error:
            raise MediaError("corrupt", one_line(error)) from None
        width, height = image.size
        if width * height > limits.max_pixels:
            raise MediaError("too_large", f"{width}x{height} pixels, at most {limits.max_pixels} in all")
        if width < 1 or height < 1:
            raise MediaError("corrupt", f"{width}x{height} pixels")
        try:
            image.load()
            format_ = (image.format or "").lower()
            mark = _image_mark(image)
            image = _upright(image)
            array = _to_rgb(image)
        except MediaError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", str(error)) from None
        except DECODE_ERRORS as error:
            text = one_line(error)
            code = "truncated" if "truncated" in text.lower() else "corrupt"
            raise MediaError(code, text) from None
    height, width = array.shape[:2]
    return array, ImageInfo(width, height, format_, mark)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image  # damaged EXIF says nothing of the orientation; the pixels are sound


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) of a loaded image in any of Pillow's modes."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _grey_to_rgb(np.asarray(image), mode)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray, mode: str) -> np.ndarray:
    """16-bit grey, 32-bit integers that hold 16-bit values, floats in [0, 1]: to uint8 (H, W, 3)."""
    if mode == "F":
        if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > 1:
            raise MediaError("unsupported", "floating-point pixels outside [0, 1]: their range is not known")
        grey = grey * 255.0
    else:
        if grey.min() < 0 or grey.max() > 65535:
            raise MediaError("unsupported", "integer pixels beyond 16 bits: their range is not known")
        grey = grey.astype(np.float32) / 257.0
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def _image_mark(image: Image.Image) -> Any:
    texts = getattr(image, "text", None) or {}
    value = texts.get(MARK, image.info.get(MARK))
    return None if value is None else parse_mark(value)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) or (T, H, W, 3) uint8 to `size` = (height, width), bicubic and free of aliasing; aspect not
    kept.
    """
    if image.ndim == 4:
        return np.stack([resize(frame, size) for frame in image])
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_center_crop(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scale so that `size` (a side, or (height, width)) is just covered, then cut the middle; (T, H, W, 3)
    too.
    """
    height, width = (size, size) if isinstance(size, int) else size
    scaled_h, scaled_w = cover(image.shape[-3], image.shape[-2], height, width)
    return center_crop(resize(image, (scaled_h, scaled_w)), height, width)


def cover(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same aspect that covers the target."""
    scale = max(target_height / height, target_width / width)
    return max(target_height, round(height * scale)), max(target_width, round(width * scale))


def center_crop(array: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (array.shape[-3] - height) // 2, (array.shape[-2] - width) // 2
    return np.ascontiguousarray(array[..., top : top + height, left : left + width, :])


def encode_png(image: np.ndarray, mark: Any = None) -> bytes:
    """uint8 (H, W, 3) as PNG; `mark` (JSON-able, not None) is written as the text chunk `omniloom`."""
    check_array("image", image, 3)
    info = PngImagePlugin.PngInfo()
    if mark is not None:
        info.add_itxt(MARK, json.dumps(mark, ensure_ascii=False))
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", pnginfo=info)
    return sink.getvalue()
