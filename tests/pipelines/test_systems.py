"""docs/systems.md: each line of its tables is read, checked and planned, and trainings that it changes take steps."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import corpora
import pytest

from omniloom.pipelines.checks import check_all, with_upstream
from omniloom.pipelines.config import PipelineConfig, load
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.preset_files import preset_names
from omniloom.stages.tokenizer.config import TokenizerStageConfig, is_warm_up
from omniloom.stages.train.config import TrainConfig, expected_config

PAGE = Path(__file__).parents[2] / "docs" / "systems.md"


def lines() -> list[str]:
    """The commands of all tables, behind `run`."""
    cells = [row.split(" | ")[-1].rstrip(" |") for row in PAGE.read_text().splitlines() if row.startswith("| ")]
    return [found[1] for cell in cells if (found := re.fullmatch(r"`run ?(.*)`", cell))]


def config_of(line: str, folder: Path) -> PipelineConfig:
    """What `omniloom run demo LINE` reads; a preset may stand in place of the demo."""
    encoder = folder / "encoder"
    if "ENCODER" in line and not encoder.exists():
        corpora.vision_encoder(encoder)
    words = settings(line.replace("ENCODER", str(encoder)))
    preset = words.pop(0) if words and "=" not in words[0] else "demo"
    return load(preset, [f"storage={folder / 'storage'}", *words])


def settings(line: str) -> list[str]:
    """Words that a shell would take apart where a mapping is quoted, as it stands there without quotes."""
    found, depth = [""], 0
    for sign in line:
        depth += (sign in "{[") - (sign in "]}")
        if sign == " " and not depth:
            found.append("")
        else:
            found[-1] += sign
    return [word for word in found if word]


def test_the_page_has_lines_and_every_preset_of_a_study():
    found = lines()
    assert len(found) > 30 and len(set(found)) == len(found)
    assert {"quantizers data=digits:/", "tokenizers data=digits:/", "objectives", "generations"} <= set(found)


@pytest.mark.parametrize("line", lines())
def test_a_line_is_read_checked_and_planned(line, tmp_path):
    config = config_of(line, tmp_path)
    check_all(config)
    if config.sweep is None:
        assert make_plan(config).to_execute


def test_each_line_makes_another_model_than_the_demo(tmp_path):
    """A setting that is the default anyway would show nothing; lines that say so name what the demo is."""
    known = {"", *[line for line in lines() if "rope_scheme=tie_v2" in line or "kind: vq," in line]}
    known |= {line for line in lines() if line.endswith(("objectives={latent_diffusion: 1.0}", "optimizer.muon={}"))}
    demo = [planned.fingerprint for planned in make_plan(config_of("", tmp_path)).stages]
    for line in lines():
        config = config_of(line, tmp_path)
        if config.sweep is None:
            same = [planned.fingerprint for planned in make_plan(config).stages] == demo
            assert same == (line in known), line


@pytest.mark.slow
@pytest.mark.parametrize("line", lines())
def test_what_a_line_changes_takes_steps(line, tmp_path):
    """Of each training that the demo does not have, each in a process of its own, as `doctor --measure` times them."""
    from omniloom.stages.tokenizer.measured import step_seconds as tokenizer_seconds
    from omniloom.stages.train.measured import step_seconds

    demo = {} if not line else trainings(config_of("", tmp_path))
    config = config_of(line, tmp_path)
    if config.sweep is not None:
        pytest.skip("a sweep's trials are lines of their own")
    for name, (own, tokens, tokenizer, model) in trainings(config).items():
        if demo.get(name, (None,))[0] == own and demo[name][3] == model:
            continue
        if isinstance(own, TokenizerStageConfig):
            if not is_warm_up(model):
                seconds, trained = elsewhere(tokenizer_seconds, own, model)
                assert 0 < seconds < 60 and trained > 0
        else:
            made = expected_config(own, tokens, tokenizer.model)
            assert 0 < elsewhere(step_seconds, own, made, own.workers.most) < 60


def trainings(config: PipelineConfig) -> dict[str, tuple]:
    """Of each training its config, its tokens' and its tokenizer's, and the model of the tokenizer that it trains, or
    whose pictures it learns."""
    found = {}
    for stage, own, upstream in with_upstream(config):
        tokens, tokenizer = upstream.get("tokens"), upstream.get("tokenizer")
        if isinstance(own, TokenizerStageConfig):
            found[stage.name] = own, tokens, tokenizer, stage.resolved(own, upstream).model
        elif isinstance(own, TrainConfig):
            found[stage.name] = own, tokens, tokenizer, tokenizer.model
    return found


def elsewhere(function: Callable, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def test_the_presets_that_are_named_exist():
    named = {line.split()[0] for line in lines() if line and "=" not in line.split()[0]}
    assert named <= set(preset_names())
