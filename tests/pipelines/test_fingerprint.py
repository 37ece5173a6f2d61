"""Fingerprints: one canonical form, everything that decides the output in it and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from demo_stages import NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from omniloom.pipelines import graph
from omniloom.pipelines.config import load
from omniloom.pipelines.fingerprint import ABSENT, canonical, differences, digest, fingerprint
from omniloom.stages.base import PLACEMENT

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """A form in which two values are equal exactly where their canonical forms must be: 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return "dict", tuple(sorted((key, shape(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return "list", tuple(shape(item) for item in value)
    return type(value).__name__, repr(value)


@given(values, values)
@settings(max_examples=200, deadline=None)
def test_equal_digests_mean_equal_values(one, other):
    assert (digest(one) == digest(other)) == (shape(one) == shape(other))
    assert (differences(canonical(one), canonical(other)) == []) == (digest(one) == digest(other)) or one == other


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, min_size=2), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_keys_does_not_matter(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert digest({key: value[key] for key in keys}) == digest(value)


@given(values)
@settings(max_examples=50, deadline=None)
def test_canonical_is_stable_and_tuples_are_lists(value):
    assert canonical(canonical(value)) == canonical(value)
    assert digest((value, value)) == digest([value, value])


@pytest.mark.parametrize(
    "value, error",
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (object(), TypeError),
        ({1, 2}, TypeError),
        (b"bytes", TypeError),
        ({1: "a"}, TypeError),
        (int, TypeError),
        (lambda: 0, TypeError),
        (1j, TypeError),
    ],
)
def test_what_has_no_canonical_form_is_an_error_that_names_its_place(value, error):
    with pytest.raises(error, match=r"config\.a\.0\.b"):
        canonical({"a": [{"b": value}]}, "config")


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 3


class Model(BaseModel):
    colour: Colour = Colour.RED
    inner: Inner = Inner()
    workers: int = Field(2, json_schema_extra=PLACEMENT)
    noted: int = Field(5, json_schema_extra={"examples": [1]})


def test_models_dataclasses_and_enums():
    assert canonical(Model()) == {"colour": "red", "inner": {"size": 3}, "noted": 5}
    assert digest(Model(workers=9)) == digest(Model()) != digest(Model(inner=Inner(4)))


def test_every_part_of_a_fingerprint_counts():
    base = ("train", 1, {"lr": 0.1}, {"ingest": "a"}, None)
    variants = [
        base,
        ("evaluate", *base[1:]),
        (base[0], 2, *base[2:]),
        (*base[:2], {"lr": 0.2}, *base[3:]),
        (*base[:3], {"ingest": "b"}, None),
        (*base[:4], "listing"),
    ]
    assert len({fingerprint(*parts) for parts in variants}) == len(variants)
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(*base))


def test_differences_name_their_paths():
    old = {"a": {"b": 1, "gone": 2}, "list": [1, {"x": 0.1}], "same": None}
    new = {"a": {"b": 1.0, "new": 3}, "list": [1, {"x": 0.2}], "same": None}
    assert differences(old, new) == [
        ("a.b", 1, 1.0),
        ("a.gone", 2, ABSENT),
        ("a.new", ABSENT, 3),
        ("list.1.x", 0.1, 0.2),
    ]
    assert differences({"list": [1]}, {"list": [1, 2]}) == [("list", [1], [1, 2])]


# What says only how or where something runs, written down here a second time: a field that gets or loses its mark
# by mistake is told by the walk below.
NOT_IDENTITY = re.compile(
    r"""
    (name|storage|data|seed|tracking\..*|cluster\..*|prices\..*|pins|sweep|forecast)
  | stages\.ingest\.(sources\.\d+\.(uri|media_root)|num_workers)
  | stages\.(tokenizer_image|tokenizer_joint|train)\.(
        workers\..*|validate_every|validation_(examples|rows)|(data\.)?cache_bytes|samples\..*
      | retrain|engine\.(zero_stage|offload|activation_checkpointing|compile|sequence_parallel))
  | stages\.train\.(continue_from|keep_checkpoint)
  | stages\.pretokenize\.(batch_size|retrain|workers|cpus|gpus)
  | stages\.evaluate\.(cpus|gpus)
""",
    re.VERBOSE,
)


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """(key, child) of a container; None for a leaf, and for an empty container, which counts as one."""
    if isinstance(value, BaseModel):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return (
        list(value.items() if isinstance(value, dict) else enumerate(value)) or None
        if isinstance(value, dict | list | tuple)
        else None
    )


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    inner = children(value)
    if inner is None:
        yield path
    for key, child in inner or ():
        yield from leaves(child, (*path, key))


def replaced(value: Any, path: tuple) -> Any:
    """A copy with another value at the leaf; past any validation, as only the fingerprint is looked at."""
    if not path:
        return {
            bool: lambda v: not v,
            int: lambda v: v + 1,
            float: lambda v: v * 1.5 + 0.25,
            str: lambda v: v + "x",
            list: lambda v: ["x"],
            tuple: lambda v: ("x",),
            dict: lambda v: {"x": "x"},
            type(None): lambda v: 1,
        }[type(value)](value)
    result = copy.copy(value)
    child = replaced(dict(children(value))[path[0]], path[1:])
    if isinstance(value, tuple):
        return (*value[: path[0]], child, *value[path[0] + 1 :])
    if isinstance(value, dict | list):
        result[path[0]] = child
    else:
        object.__setattr__(result, path[0], child)
    return result


def fingerprints(config) -> dict[str, str]:
    """Of every stage, by the chain that a plan follows, under one listing of sources."""
    found: dict[str, str] = {}
    pipeline = graph.Graph(config.stages.configured())
    for stage in pipeline.stages:
        found[stage.name] = fingerprint(
            stage.name,
            stage.module.VERSION,
            getattr(config.stages, stage.name),
            {name: found[name] for name in pipeline.inputs[stage.name].values()},
            "listing" if stage.name == "ingest" else None,
        )
    return found


def test_every_leaf_of_the_demo_is_identity_or_placement():
    config = load("demo")
    before = fingerprints(config)
    absent = {("stages", name) for name in graph.KNOWN_NAMES if name not in NAMES}
    paths = [path for path in leaves(config) if path not in absent]
    wrong = []
    for path in paths:
        changed = {name for name, now in fingerprints(replaced(config, path)).items() if now != before[name]}
        name = ".".join(map(str, path))
        expected = set() if NOT_IDENTITY.fullmatch(name) else {path[1]} | config.graph.descendants(path[1])
        if changed != expected:
            wrong.append(f"{name}: changes {sorted(changed)}, expected {sorted(expected)}")
    assert not wrong, "\n".join(wrong)
    placed = sum(bool(NOT_IDENTITY.fullmatch(".".join(map(str, path)))) for path in paths)
    assert placed > 50 and len(paths) - placed > 200


def test_placement_changes_no_planned_fingerprint(workspace, tmp_path, s3):
    def planned(*overrides: str) -> list[str]:
        return [stage.fingerprint for stage in workspace.plan(*overrides).stages]

    base = planned()
    stages = "stages.train.{0} stages.tokenizer_joint.{0}".format
    for overrides in (
        [f"storage={tmp_path}/other"],
        [f"storage={s3}"],
        ["storage=memory://run"],
        ["name=other"],
        ["tracking.uri=http://127.0.0.1:5000", "tracking.experiment=x", "tracking.sample_seconds=1"],
        ["cluster.address=127.0.0.1:6379", "cluster.num_cpus=64", "cluster.env.NCCL_DEBUG=INFO"],
        stages("workers.count=8").split(),
        stages("workers.gpus=1").split(),
        stages("workers.log_every=1").split(),
        stages("workers.checkpoint_every=7").split(),
        stages("validate_every=3").split(),
        stages("engine.zero_stage=0").split(),  # Muon, which the demo has, needs 0 or 1
        ["stages.pretokenize.workers=16", "stages.ingest.num_workers=3"],
    ):
        assert planned(*overrides) == base, overrides
    assert planned("stages.train.workers.accumulate=2", "stages.train.workers.count=4") == base
    assert planned("seed=1") != base  # the demo hands its seed on to its stages


@pytest.mark.parametrize("preset", ["demo", "pictures", "objectives"])
def test_a_manifests_config_is_read_again(preset):
    """What was left at None of fields that came later is not in it, and that makes no YAML of it."""
    config = load(preset, ["data=/data"])
    for name in ("tokenizer_image", "train"):
        own = getattr(config.stages, name)
        assert canonical(type(own).model_validate(canonical(own, name)), name) == canonical(own, name)
