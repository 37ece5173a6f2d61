"""Aspect ratios: the bucket that a picture falls in, and the height and width that a bucket's clips have.

In: ratios as a config names them ("4:3", width to height), a size in pixels, the patch of the model.
Out: the number of a bucket, and (height, width) in pixels.
A bucket's clips cover about size * size pixels whatever their ratio, so that a step costs alike in each (multi-aspect
training, SDXL, arXiv 2307.01952, section 2.3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_RATIO = re.compile(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})")


def ratio(name: str) -> float:
    """Width over height of "W:H", two positive integers; ValueError for anything else."""
    if not (found := _RATIO.fullmatch(name)):
        raise ValueError(f"expected width:height in positive integers such as 4:3, got {name!r}")
    return int(found[1]) / int(found[2])


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as they are; ValueError where a name is no ratio, or two name the same one."""
    known: dict[float, str] = {}
    for name in names:
        if (value := ratio(name)) in known:
            raise ValueError(f"{name!r} is the same ratio as {known[value]!r}")
        known[value] = name
    return names


@dataclass(frozen=True)
class Aspects:
    """Buckets by aspect ratio; bucket k is that of `names[k]`. Every side is a multiple of `patch_size` pixels."""

    names: tuple[str, ...] = ("1:1",)
    patch_size: int = 1

    def shape(self, bucket: int, size: int) -> tuple[int, int]:
        """(height, width) of the bucket's clips: about size * size pixels, each side the nearest multiple of the patch.

        1:1 is size x size exactly, for a size that the patch divides. ValueError where a patch is longer than a side.
        """
        stretch = math.sqrt(ratio(self.names[bucket]))
        sides = size / stretch, size * stretch
        if min(sides) < self.patch_size:
            raise ValueError(
                f"{self.names[bucket]!r} at size {size} has a side of {min(sides):.1f} pixels, "
                f"expected at least patch_size {self.patch_size}"
            )
        height, width = (round(side / self.patch_size) * self.patch_size for side in sides)
        return height, width

    def check(self, sizes: Sequence[int], sizes_field: str, aspects_field: str) -> None:
        """ValueError naming the field where the patch does not divide a size, or is longer than a side at one."""
        for size in sizes:
            if size % self.patch_size:
                raise ValueError(f"{sizes_field}: {size} is no multiple of patch_size {self.patch_size}")
            for bucket in range(len(self.names)):
                try:
                    self.shape(bucket, size)
                except ValueError as error:
                    raise ValueError(f"{aspects_field}: {error}") from None

    def bucket(self, width: int, height: int) -> int:
        """The bucket whose ratio is nearest to width / height by its logarithm; of two as near, the first named."""
        return int(self.buckets([width], [height])[0])

    def buckets(self, widths, heights):
        """`bucket` of many: two sequences of N positive numbers -> int64 (N,)."""
        import numpy as np

        found = np.log(np.asarray(widths, dtype=float)) - np.log(np.asarray(heights, dtype=float))
        named = np.log([ratio(name) for name in self.names])
        # Rounded, so that a tie is one whatever the order in which the logarithms were taken.
        return np.abs(found[:, None] - named).round(9).argmin(1)
