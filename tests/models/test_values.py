"""Configs and tables are values: what is shared by models, stages and files never changes under its readers."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import models

# What is filled in or handed on piece by piece while a batch is made, a picture drawn or a video read.
FILLED = {"Batch", "BlockAttend", "BlockTables", "DenseAttend", "FlexAttend", "GridTables", "QueryBlocks", "Segment",
          "Shown", "TemporalState", "VisualInput", "VisualPart", "VisualTask", "_Canvas", "_Placed"}


def test_all_others_are_frozen_and_can_be_keys():
    found = {value for module in pkgutil.walk_packages(models.__path__, "models.")
             for value in vars(importlib.import_module(module.name)).values()
             if dataclasses.is_dataclass(value) and value.__module__.startswith("models.")}
    frozen = {value for value in found if value.__dataclass_params__.frozen}
    assert {value.__qualname__ for value in found - frozen} == FILLED
    assert len(frozen) > 10 and all(value.__hash__ for value in frozen)


def test_names_of_the_unified_package_are_loaded_on_first_use_and_others_are_none():
    unified = importlib.import_module("models.unified")
    assert {name for name in unified.__all__ if getattr(unified, name).__name__ == name} == set(unified.__all__)
    assert not hasattr(unified, "UnifiedNothing")
