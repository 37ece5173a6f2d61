"""Where a picture is cut that is scaled to cover a size. Standard library only."""

from __future__ import annotations

Size = tuple[int, int]  # (height, width) in pixels
Box = tuple[float, float, float, float]  # (left, top, right, bottom) in pixels, fractions of one too


def cover(height: int, width: int, target_height: int, target_width: int) -> Size:
    """The smallest (height, width) of the same aspect that covers the target."""
    scale = max(target_height / height, target_width / width)
    return max(target_height, round(height * scale)), max(target_width, round(width * scale))


def centre_box(stored: Size, size: Size, shown: Size | None = None) -> Box:
    """The part of a picture of `stored` pixels that becomes `size` once it is scaled to cover that and cut at the
    centre. `shown` is the (height, width) on display where the stored pixels are not square."""
    scaled = cover(*(shown or stored), *size)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    down, across = stored[0] / scaled[0], stored[1] / scaled[1]  # stored pixels in a scaled one
    bottom, right = min((top + size[0]) * down, stored[0]), min((left + size[1]) * across, stored[1])
    return left * across, top * down, right, bottom
