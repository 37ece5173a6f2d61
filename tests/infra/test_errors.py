"""Errors that name their field: several told together, raised inside a part of a config, sent between processes."""

from __future__ import annotations

import pickle

import pytest

from omniloom.infra.errors import InputError, together, within

LATE = InputError("is late", field="b.c", file="a.yaml", line=7)
EARLY = InputError("is early", field="b.d", file="a.yaml", line=3)
OVERRIDE = InputError("is late", field="e")


def test_each_is_told_once_by_its_line_and_overrides_first():
    error = together([LATE, EARLY, OVERRIDE, together([LATE, EARLY])])
    assert [one.field for one in error.each()] == ["e", "b.d", "b.c"]
    assert str(error) == "e: is late\n  b.d: is early\n  b.c: is late"
    assert together([LATE]) is LATE and LATE.each() == (LATE,)


def test_all_of_it_goes_from_one_process_to_another():
    error = pickle.loads(pickle.dumps(together([LATE, EARLY])))
    assert type(error) is InputError and str(error) == str(together([LATE, EARLY]))
    assert [(one.field, one.file, one.line) for one in error.each()] == [("b.d", "a.yaml", 3), ("b.c", "a.yaml", 7)]
    assert (error.field, error.line) == ("b.d", 3)


def test_what_is_raised_in_a_part_has_the_parts_field_each_of_several():
    def several() -> InputError:
        return together([InputError("is late", field="c", line=7), InputError("is early", field="d", line=3)])

    with pytest.raises(InputError) as caught, within("stages.train"):
        raise several()
    assert [one.field for one in caught.value.each()] == ["stages.train.d", "stages.train.c"]
    assert caught.value.field == "stages.train.d" and "stages.train.c: is late" in str(caught.value)
    with pytest.raises(InputError, match="^data.sizes: expected more$"), within("data"):
        raise ValueError("sizes: expected more")
    with pytest.raises(InputError) as one, within("data"):
        raise InputError("is wrong")
    assert one.value.field == "data"
