"""Images: encoded bytes to RGB arrays and back.

In: the bytes of a file and `Limits`. Out: uint8 (H, W, 3), upright, transparency on white, 16 bits scaled; of
an animation the first frame, of a file of several pictures (TIFF, HEIC) the first or the one it names as primary. A
file that cannot be used raises `MediaError`; no other exception leaves.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pillow_heif
import simplejpeg
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from omniloom.models.cover import Size, centre_box, cover
from omniloom.stages.data.media import containers, image_checks
from omniloom.stages.data.media.identity import picture_identity, picture_look
from omniloom.stages.data.media.limits import (
    DECODE_ERRORS,
    DEFAULT_LIMITS,
    MARK,
    NO_LIMITS,
    Limits,
    MediaError,
    check_array,
    check_bytes,
    check_pixels,
    check_shape,
    one_line,
    parse_mark,
)
from omniloom.stages.data.media.scaling import resize, resize_center_crop

# Formats that are decoded in this process; EPS and the like would start other programs.
IMAGE_FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "ICO",
    "TGA",
    "JPEG2000",
    "AVIF",
    "HEIF",
)
pillow_heif.register_heif_opener()
Image.init()  # registers every plugin, so that formats can be named
_FORMATS = tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


@dataclass(frozen=True)
class ImageInfo:
    """`format` is Pillow's name in lower case; `mark` what the mark says, or None for a file without one."""

    width: int
    height: int
    format: str
    mark: Any = None
    identity: str = ""  # of the pixels, as `stages.data.media.identity` has it; its look
    look: bytes = b""
    orientation: int = 1  # as EXIF numbers it


def decode_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """The image as uint8 (H, W, 3): orientation applied, transparency on white, 16 bits scaled, first frame.

    What is damaged and can be shown is shown, in any shape.
    """
    return _decode_image(data, limits)[0]


def decode_image_to(data: bytes, size: Size, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """The image scaled to cover `size` = (height, width) and cut at the centre: uint8 (H, W, 3).

    Equal to `resize_center_crop` of `decode_image`, but of a JPEG that has four times the sides that are needed or
    more: it is decoded to a half, a quarter or an eighth of them, twice of what is needed at least, without the
    frequencies that scaling would take away (the scaled inverse transform of libjpeg).
    """
    if limits == NO_LIMITS and (whole := _upright_jpeg(data, size)) is not None:
        return resize_center_crop(whole, size)
    pixels, info = _decode_image(data, limits, enough=size)
    if pixels.shape[:2] == (info.height, info.width):
        return resize_center_crop(pixels, size)
    part = 2 ** round(math.log2(info.height / pixels.shape[0]))
    # Sides are rounded up: the picture as it is stored ends inside the last pixel, which may now be the first one.
    right = pixels.shape[1] - info.width / part if info.orientation in (2, 3, 6, 7) else 0.0
    down = pixels.shape[0] - info.height / part if info.orientation in (3, 4, 7, 8) else 0.0
    box = centre_box((info.height, info.width), size)
    return resize(
        pixels, size, (box[0] / part + right, box[1] / part + down, box[2] / part + right, box[3] / part + down)
    )


def probe_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> ImageInfo:
    """What the image is, found by decoding it whole: raises for one that is truncated, damaged, or of a shape that
    the limits exclude.
    """
    pixels, info = _plainly(data, limits) or _decode_image(data, limits, intact=True)
    check_shape(info.width, info.height, limits)
    return replace(info, identity=picture_identity(pixels), look=picture_look(pixels))


def _plainly(data: bytes, limits: Limits) -> tuple[np.ndarray, ImageInfo] | None:
    """The pixels of a JPEG of the usual kind that libjpeg decodes without a warning, equal to Pillow's; None for any
    other picture, of which has to be found out what it is or what is wrong with it."""
    check_bytes(data, limits)
    if not data.startswith(b"\xff\xd8") or (size := image_checks.plain_jpeg(data)) is None:
        return None
    height, width = size
    check_pixels(width, height, limits)
    image_checks.check_scans(1, width, height, limits)
    pixels = _checked_jpeg(data)
    return None if pixels is None else (pixels, ImageInfo(width, height, "jpeg"))


def _decode_image(
    data: bytes, limits: Limits, intact: bool = False, enough: Size | None = None
) -> tuple[np.ndarray, ImageInfo]:
    """The pixels, which a JPEG may have fewer of where those that cover twice `enough` are, and what the whole is."""
    check_bytes(data, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd EXIF; the limits decide here
        image = _open(data, limits)
        check_pixels(*image.size, limits)
        if min(image.size) < 1:
            raise MediaError("corrupt", f"{image.width}x{image.height} pixels")
        format_ = (image.format or "").lower()
        bounded = intact or limits.max_scan_pixels < NO_LIMITS.max_scan_pixels
        jpeg = image_checks.read_jpeg(data) if bounded and format_ in ("jpeg", "mpo") else None
        if jpeg:
            image_checks.check_scans(jpeg.scans, *image.size, limits)
        try:
            width, height = image.size
            orientation = _orientation(image)
            lies = orientation >= 5  # on one of its sides
            if enough and format_ in ("jpeg", "mpo"):
                needed = cover(height, width, *(enough[::-1] if lies else enough))
                image.draft(None, (2 * needed[1], 2 * needed[0]))
            plain = format_ == "jpeg" and image.mode in ("L", "RGB") and orientation == 1
            checked = _checked_jpeg(data) if intact and plain else None
            if checked is None:
                image.load()
            mark = _image_mark(image)
            if checked is None:
                _clear_exact_colour(image, data)
                array = _to_rgb(image if orientation == 1 else _upright(image))
            else:
                array = checked
        except MediaError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", str(error)) from None
        except DECODE_ERRORS as error:
            raise _damaged(error, data) from None
        if intact and jpeg:
            image_checks.check_jpeg(jpeg, decoded=checked is not None)
        elif intact and format_ == "png":
            image_checks.check_png(data)
    if enough is None:
        height, width = array.shape[:2]
    elif lies:
        height, width = width, height
    return array, ImageInfo(width, height, format_, mark, orientation=orientation)


def _checked_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG that libjpeg decodes without a warning, equal to Pillow's; None for any other, of which has
    to be found out what is wrong with it."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None


def _upright_jpeg(data: bytes, enough: Size) -> np.ndarray | None:
    """The pixels of a sound JPEG of grey or colour that says nothing of its orientation and is not to be decoded to
    fewer; None for any other. Equal to Pillow's, without what Pillow does in Python for each file."""
    if data[:3] != b"\xff\xd8\xff" or b"Exif" in data or b"rientation" in data:  # in EXIF, or in XMP
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        needed = cover(height, width, *enough)
        if colours not in ("Gray", "YCbCr") or min(height // (2 * needed[0]), width // (2 * needed[1])) > 1:
            return None
        return _checked_jpeg(data)
    except ValueError:
        return None


def _open(data: bytes, limits: Limits) -> Image.Image:
    while True:
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            raise _unidentified(data) from None
        except Image.DecompressionBombError as error:
            bound = Image.MAX_IMAGE_PIXELS
            if bound is None or bound >= limits.max_pixels:
                raise MediaError("too_large", str(error)) from None
            Image.MAX_IMAGE_PIXELS = min(2 * bound, limits.max_pixels)  # Pillow's own bound is below what is allowed
        except DECODE_ERRORS as error:
            raise _damaged(error, data) from None


def _damaged(error: BaseException, data: bytes) -> MediaError:
    text = one_line(error)
    cut = "truncated" in text.lower() or "end of file" in text.lower() or containers.cut_short(data)
    return MediaError("truncated" if cut else "corrupt", text)


def _unidentified(data: bytes) -> MediaError:
    if name := containers.still_picture(data):
        if missing := containers.cut_short(data):
            return MediaError("truncated", missing)
        return MediaError("corrupt", f"begins as {name} and cannot be read")
    if containers.looks_like_video(data):
        return MediaError("not_an_image", "a video, which a source of kind video_folder takes")
    return MediaError("not_an_image", "no known image format")


def _orientation(image: Image.Image) -> int:
    """How the picture is stored, as EXIF numbers it: 1 upright, 5 to 8 on one of its sides."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except DECODE_ERRORS:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image  # damaged EXIF says nothing of the orientation; the pixels are sound


def _clear_exact_colour(image: Image.Image, data: bytes) -> None:
    """White where a PNG of 16 bits has the one colour that it declares transparent; Pillow compares 8 of the 16 bits
    (PNG, clause 11.3.1.1). For grey see `_to_rgb`.
    """
    if image.format == "PNG" and image.mode == "RGB" and "transparency" in image.info and data[24] == 16:
        import av

        (frame,) = av.CodecContext.create("png", "r").decode(av.Packet(data))
        alpha = frame.reformat(format="rgba64le").to_ndarray()[..., 3]
        image.paste((255, 255, 255), mask=Image.fromarray(alpha == 0))
        del image.info["transparency"]


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) of a loaded image in any of Pillow's modes."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        grey = np.asarray(image)
        array = _grey_to_rgb(grey, mode)
        if isinstance(clear := image.info.get("transparency"), int):
            array[grey == clear] = 255
        return array
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
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


def encode_png(image: np.ndarray, mark: Any = None) -> bytes:
    """uint8 (H, W, 3) as PNG; `mark` (JSON-able, not None) is written as the text chunk `omniloom`."""
    check_array("image", image, 3)
    info = PngImagePlugin.PngInfo()
    if mark is not None:
        info.add_itxt(MARK, json.dumps(mark, ensure_ascii=False))
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", pnginfo=info)
    return sink.getvalue()
