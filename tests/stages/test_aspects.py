"""Aspect ratios: shapes of equal area on the patch's grid, the nearest bucket, and errors that name the field."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omniloom.stages.data.aspects import Aspects, check_names, ratio
from omniloom.stages.pretokenize.config import Config as PretokenizeConfig
from omniloom.stages.tokenizer.config import Config, DataConfig

NAMES = ("1:1", "4:3", "3:4", "16:9", "9:16")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([1, 4, 8, 16]), st.integers(4, 32), st.sampled_from(NAMES))
def test_a_shape_has_the_area_of_the_square_and_its_ratio_as_near_as_the_patch_allows(patch, patches, name):
    size = patch * patches
    height, width = Aspects((name,), patch).shape(0, size)
    stretch = math.sqrt(ratio(name))
    assert height % patch == width % patch == 0
    assert abs(height - size / stretch) <= patch / 2 and abs(width - size * stretch) <= patch / 2
    flipped = ":".join(reversed(name.split(":")))
    assert Aspects((flipped,), patch).shape(0, size) == (width, height)
    if name == "1:1":
        assert (height, width) == (size, size)


def test_shapes_that_are_known():
    aspects = Aspects(NAMES, 8)
    assert [aspects.shape(k, 64) for k in range(5)] == [(64, 64), (56, 72), (72, 56), (48, 88), (88, 48)]
    assert aspects.shape(3, 256) == (192, 344)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.permutations(NAMES))
def test_the_nearest_bucket_by_logarithm(width, height, names):
    aspects = Aspects(tuple(names))
    distance = [abs(math.log(width / height / ratio(name))) for name in names]
    assert distance[aspects.bucket(width, height)] == pytest.approx(min(distance), abs=1e-8)
    assert names[aspects.bucket(height, width)].split(":") == names[aspects.bucket(width, height)].split(":")[::-1] or (
        sorted(distance)[1] == pytest.approx(min(distance), abs=1e-8)
    )


def test_of_two_ratios_as_near_the_first_is_taken():
    assert Aspects(("4:1", "1:1")).bucket(2, 1) == 0 and Aspects(("1:1", "4:1")).bucket(2, 1) == 0
    assert Aspects(("1:1", "4:3", "3:4")).buckets([10, 40, 3, 1], [10, 30, 4, 99]).tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("name", ["0:1", "1:0", "a:b", "4x3", "4:3:2", "-1:2", "1.5:1", "", ":", "١:١"])
def test_what_is_no_ratio_is_named(name):
    with pytest.raises(ValueError, match="width:height"):
        check_names((name,))
    for config in (DataConfig, PretokenizeConfig):
        with pytest.raises(ValidationError, match="width:height") as caught:
            config(aspects=("1:1", name))
        assert caught.value.errors()[0]["loc"] == ("aspects",)


def test_the_same_ratio_twice_is_refused():
    with pytest.raises(ValidationError, match="'8:6' is the same ratio as '4:3'"):
        DataConfig(aspects=("4:3", "8:6"))
    with pytest.raises(ValidationError, match="aspects"):
        DataConfig(aspects=())


@pytest.mark.parametrize(
    "data, words",
    [
        ({"sizes": [64, 60]}, "data.sizes: 60 is no multiple of patch_size 8"),
        ({"sizes": [64, 32], "aspects": ["1:1", "20:1"]}, "data.aspects: '20:1' at size 32 has a side of 7.2 pixels"),
        ({"sizes": [0]}, "sizes.0"),
    ],
)
def test_sizes_and_ratios_that_the_patch_does_not_fit_are_found_with_the_config(data, words):
    with pytest.raises(ValidationError, match=words):
        Config(model={"patch_size": 8}, data=data)


def test_configs_with_ratios_need_neither_torch_nor_numpy():
    code = (
        "import sys, omniloom.stages.pretokenize.config as p; p.Config(aspects=['4:3']); "
        "assert not {'torch', 'numpy', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
